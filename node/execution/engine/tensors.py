"""Tensors of a ``forward`` job in and out of torch. Their file was checked by ``protocol/tensors.py``.

No library parses what a peer sent: each tensor is made from its bytes here.
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from safetensors.torch import save

from node.errors import JobRefusedError
from protocol.tasks.forward import ForwardInput, ForwardOutput, split_tensors
from protocol.tensors import Tensor, bytes_of, read_tensors

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ALONE: Final = 1 << 62
_FLOAT32_BYTES: Final = 4
# A header of a few short names and shapes.
_HEADER_BYTES: Final = 512


class Forwarding(Protocol):
    """The part of a network that takes tensors."""

    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]: ...

    def check(self, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorItem:
    """The tensors of one job, on the CPU."""

    tensors: dict[str, torch.Tensor]

    @property
    def weight(self) -> int:
        return _ALONE


def tensor_item(network: Forwarding, task_input: ForwardInput) -> TensorItem:
    """Return the one item of a job whose tensors the network takes.

    Raises:
        JobRefusedError: ``input``, or ``context_exceeded``: the answer is longer than what is asked for.
    """
    data = task_input.tensors
    tensors = {name: _to_torch(data, tensor) for name, tensor in read_tensors(data).items()}
    shapes = network.check(tensors)
    size = _HEADER_BYTES + sum(_FLOAT32_BYTES * math.prod(shape) for shape in shapes.values())
    if size > task_input.output_bytes_max:
        raise JobRefusedError(
            f"the answer may take {size} bytes, output_bytes_max is {task_input.output_bytes_max}",
            code="context_exceeded",
        )
    return TensorItem(tensors=tensors)


def outputs_of(network: Forwarding, item: TensorItem, device: torch.device) -> list[ForwardOutput]:
    """Return the frames of the network's answer."""
    made = network.forward({name: tensor.to(device) for name, tensor in item.tensors.items()})
    return split_tensors(save({name: tensor.float().cpu().contiguous() for name, tensor in made.items()}))


def refuse_unless(
    tensors: dict[str, torch.Tensor], expected: dict[str, tuple[torch.dtype, tuple[int | None, ...]]]
) -> None:
    """Refuse tensors of other names, dtypes or shapes; ``None`` stands for any side.

    Raises:
        JobRefusedError: ``input``.
    """

    def fits(name: str) -> bool:
        tensor, (dtype, sides) = tensors[name], expected[name]
        return (
            tensor.dtype == dtype
            and tensor.dim() == len(sides)
            and all(wanted in (None, side) for side, wanted in zip(tensor.shape, sides, strict=True))
        )

    if set(tensors) != set(expected) or not all(fits(name) for name in expected):
        wanted = ", ".join(f"{name} {dtype} {list(sides)}" for name, (dtype, sides) in expected.items())
        raise JobRefusedError(
            "this model takes the tensors " + wanted.replace("None", "any").replace("torch.", ""), code="input"
        )


def _to_torch(data: bytes, tensor: Tensor) -> torch.Tensor:
    raw = bytearray(bytes_of(data, tensor))
    return torch.frombuffer(raw, dtype=DTYPES[tensor.dtype]).reshape(tensor.shape)
