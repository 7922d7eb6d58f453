"""``vad``: speech in audio, window by window (spec 04, section 7). A window of 32 ms is a unit."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta

from protocol import limits
from protocol.schema import Message
from protocol.task import FinishReason
from protocol.tasks.comparison import Comparison

SAMPLE_BYTES: Final = 2
SAMPLE_RATE_HZ: Final = 16_000
WINDOW_SAMPLES: Final = 512
WINDOWS_PER_FRAME_MAX: Final = limits.OUTPUT_TOKENS_PER_FRAME_MAX
TOLERANCE_MILLI: Final = 10
"""Rounding of fp32 is far below it; int8 weights were off by 44 (decision 0012)."""

Samples = Annotated[bytes, Meta(min_length=SAMPLE_BYTES, max_length=limits.INPUT_BYTES_MAX)]
Milli = Annotated[int, Meta(ge=0, le=1000)]


class VadInput(Message, frozen=True, kw_only=True):
    """One channel of audio: 16-bit signed samples, little-endian."""

    samples: Samples
    sample_rate_hz: Literal[16_000] = SAMPLE_RATE_HZ

    def __post_init__(self) -> None:
        if len(self.samples) % SAMPLE_BYTES:
            raise ValueError(f"expected {SAMPLE_BYTES} bytes for each sample, got {len(self.samples)} bytes")

    @property
    def units_in_max(self) -> int:
        """The exact number; silence fills the last window."""
        return -(-len(self.samples) // (SAMPLE_BYTES * WINDOW_SAMPLES))

    @property
    def units_out(self) -> int:
        return self.units_in_max

    def after(self, units: int) -> None:
        """Each window depends on all before it: another provider begins anew."""


class VadOutput(Message, frozen=True, kw_only=True):
    """One output frame: how likely each of the next windows holds speech, in thousandths."""

    speech_milli: Annotated[tuple[Milli, ...], Meta(min_length=1, max_length=WINDOWS_PER_FRAME_MAX)]
    finish: FinishReason | None = None

    @property
    def units(self) -> int:
        return len(self.speech_milli)


def compare_windows(theirs: Sequence[VadOutput], ours: Sequence[VadOutput]) -> Comparison:
    """Judge windows by our own of the same audio: each differs by at most ``TOLERANCE_MILLI``."""
    left = [value for output in theirs for value in output.speech_milli]
    right = [value for output in ours for value in output.speech_milli]
    if len(left) != len(right):
        return Comparison(holds=False, worst=1.0, message=f"expected {len(right)} windows, got {len(left)}")
    worst = max((abs(a - b) for a, b in zip(left, right, strict=True)), default=0)
    message = f"expected windows within {TOLERANCE_MILLI} thousandths, got {worst}"
    return Comparison(holds=worst <= TOLERANCE_MILLI, worst=worst / 1000, message=message)
