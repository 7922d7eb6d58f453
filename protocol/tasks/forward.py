"""``forward``: named tensors in, named tensors out, as safetensors (spec 04, section 8). A KiB begun is a unit."""

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from protocol import limits
from protocol.schema import Message
from protocol.task import FinishReason
from protocol.tasks.comparison import Comparison
from protocol.tensors import Tensor, read_tensors, values_of

TOLERANCE: Final = 1e-3
"""Norm of the difference over the norm of ours, for each tensor. In fp32, other batches and threads made 1e-6."""

TensorBytes = Annotated[bytes, Meta(min_length=1, max_length=limits.INPUT_BYTES_MAX)]


class ForwardInput(Message, frozen=True, kw_only=True):
    """The tensors that the model's architecture names (spec 04, section 8), and how long the answer may be."""

    tensors: TensorBytes
    """A safetensors file, checked before any library reads it."""
    output_bytes_max: Annotated[int, Meta(ge=1, le=limits.INPUT_BYTES_MAX)]

    def __post_init__(self) -> None:
        try:
            read_tensors(self.tensors)
        except ValueError:
            # Not the reader's own words: they quote the peer, and this may be logged.
            raise ValueError("expected tensors that are a safetensors file and fill it exactly") from None

    @property
    def units_in_max(self) -> int:
        """The exact number."""
        return units_of(len(self.tensors))

    @property
    def units_out(self) -> int:
        """The most there may be: how large the answer is, only the model knows."""
        return units_of(self.output_bytes_max)

    def after(self, units: int) -> None:
        """A part of an answer is worth nothing: another provider begins anew."""


class ForwardOutput(Message, frozen=True, kw_only=True):
    """One output frame: the next bytes of the answer, which is a safetensors file."""

    data: Annotated[bytes, Meta(min_length=1, max_length=limits.TENSOR_CHUNK_BYTES_MAX)]
    """All frames but the last are full."""
    finish: FinishReason | None = None

    def __post_init__(self) -> None:
        if self.finish is None and len(self.data) != limits.TENSOR_CHUNK_BYTES_MAX:
            raise ValueError(
                f"expected {limits.TENSOR_CHUNK_BYTES_MAX} bytes in all frames but the last, got {len(self.data)}"
            )

    @property
    def units(self) -> int:
        return units_of(len(self.data))


def units_of(size: int) -> int:
    """Return how many units so many bytes are."""
    return -(-size // limits.KIB)


def split_tensors(data: bytes) -> list[ForwardOutput]:
    """Return the frames of an answer."""
    size = limits.TENSOR_CHUNK_BYTES_MAX
    starts = range(0, len(data), size)
    return [
        ForwardOutput(data=data[at : at + size], finish=None if at + size < len(data) else "stop") for at in starts
    ]


def compare_tensors(theirs: Sequence[ForwardOutput], ours: Sequence[ForwardOutput]) -> Comparison:
    """Judge tensors by our own of the same input: names, dtypes and shapes alike, values within ``TOLERANCE``."""
    left, right = (b"".join(output.data for output in it) for it in (theirs, ours))
    expected = read_tensors(right)
    try:
        came = read_tensors(left)
    except ValueError as exc:
        return Comparison(holds=False, worst=1.0, message=f"expected tensors: {exc}")
    if _described(came) != _described(expected):
        return Comparison(holds=False, worst=1.0, message="expected other names, dtypes or shapes")
    worst = max(_error(values_of(left, came[name]), values_of(right, expected[name])) for name in expected)
    return Comparison(
        holds=worst <= TOLERANCE, worst=worst, message=f"expected an error of {TOLERANCE}, got {worst:.2e}"
    )


def _described(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _error(left: Sequence[float], right: Sequence[float]) -> float:
    square = sum((a - b) * (a - b) for a, b in zip(left, right, strict=True))
    scale = sum(b * b for b in right)
    if not square:
        return 0.0
    error = (square / scale) ** 0.5 if scale else 1.0
    # NaN compares with nothing.
    return error if error >= 0 else 1.0
