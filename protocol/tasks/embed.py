"""``embed``: texts in, one vector for each out (spec 04, section 5). A vector is a unit."""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from protocol import limits
from protocol.schema import Message
from protocol.task import TOKEN_BYTES, FinishReason
from protocol.tasks.comparison import Comparison

VECTOR_VALUE_BYTES: Final = 4
SPECIAL_TOKENS_PER_TEXT: Final = 8
"""What a tokeniser may add around a text."""
COSINE_MIN: Final = 0.9999
"""Honest batches, devices and bf16 reach 0.99995 and more, int8 weights 0.99975 at best (MiniLM)."""

Text = Annotated[str, Meta(min_length=1, max_length=limits.INPUT_BYTES_MAX)]
PackedTokens = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=limits.TEXT_TOKENS_MAX * TOKEN_BYTES)]


class EmbedInput(Message, frozen=True, kw_only=True):
    """Texts, or the token ids of texts as the model's own tokeniser gives them, special ones included."""

    texts: Annotated[tuple[Text, ...], Meta(max_length=limits.TEXTS_MAX)] = ()
    tokens: Annotated[tuple[PackedTokens, ...], Meta(max_length=limits.TEXTS_MAX)] = ()
    """Four bytes for each id, big-endian."""

    def __post_init__(self) -> None:
        if bool(self.texts) == bool(self.tokens):
            raise ValueError("expected either texts or tokens, got " + ("both" if self.texts else "neither"))
        if any(len(ids) % TOKEN_BYTES for ids in self.tokens):
            raise ValueError(f"expected {TOKEN_BYTES} bytes for each token")

    @property
    def units_in_max(self) -> int:
        """No tokeniser makes more tokens than there are bytes."""
        if self.tokens:
            return sum(len(ids) // TOKEN_BYTES for ids in self.tokens)
        return sum(len(text.encode()) + SPECIAL_TOKENS_PER_TEXT for text in self.texts)

    @property
    def units_out(self) -> int:
        return len(self.texts) or len(self.tokens)

    def after(self, units: int) -> "EmbedInput":
        """Return what is left when ``units`` vectors, but not all, are there."""
        assert units < self.units_out
        return replace(self, texts=self.texts[units:], tokens=self.tokens[units:])


class EmbedOutput(Message, frozen=True, kw_only=True):
    """One output frame: the vector of the next text, of length 1."""

    vector: Annotated[bytes, Meta(min_length=VECTOR_VALUE_BYTES, max_length=limits.VECTOR_BYTES_MAX)]
    """IEEE 754 single precision, little-endian."""
    finish: FinishReason | None = None

    def __post_init__(self) -> None:
        if len(self.vector) % VECTOR_VALUE_BYTES:
            raise ValueError(f"expected {VECTOR_VALUE_BYTES} bytes for each number of a vector")
        if not all(map(math.isfinite, unpack_vector(self.vector))):
            raise ValueError("expected finite numbers in a vector")

    @property
    def units(self) -> int:
        return 1


def unpack_vector(vector: bytes) -> tuple[float, ...]:
    """Return the numbers of a checked output's ``vector``."""
    return struct.unpack(f"<{len(vector) // VECTOR_VALUE_BYTES}f", vector)


def compare_vectors(theirs: Sequence[EmbedOutput], ours: Sequence[EmbedOutput]) -> Comparison:
    """Judge vectors by our own of the same texts: each pair's cosine is at least ``COSINE_MIN``."""
    if len(theirs) != len(ours):
        return Comparison(holds=False, worst=0.0, message=f"expected {len(ours)} vectors, got {len(theirs)}")
    pairs = zip(theirs, ours, strict=True)
    worst = min((_cosine(unpack_vector(a.vector), unpack_vector(b.vector)) for a, b in pairs), default=1.0)
    return Comparison(
        holds=worst >= COSINE_MIN, worst=worst, message=f"expected a cosine of {COSINE_MIN}, got {worst:.6f}"
    )


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    if len(left) != len(right):
        return -1.0
    product = sum(a * b for a, b in zip(left, right, strict=True))
    norms = math.hypot(*left) * math.hypot(*right)
    cosine = product / norms if norms else 0.0
    # NaN and infinity compare with nothing: they hold for no vector.
    return cosine if math.isfinite(cosine) else -1.0
