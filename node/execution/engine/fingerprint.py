"""Fingerprints of hidden states: a few numbers that say which weights computed an answer.

Of every 32 answer tokens the 128 largest numbers of the last hidden states are kept, each as the column (16 bits)
and the value (bfloat16): 512 bytes. Whoever has the model reads the answer, looks at the same places and compares.
After TOPLOC (arXiv 2501.16007). A cheap hint and no proof: one honest prefill over a cheat's tokens makes the same
numbers, so margins (``score.py``) judge.
"""

import struct
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

GROUP_TOKENS: Final = 32
NUMBERS_EACH: Final = 4
"""Of each token: places spread evenly over the group, and a column fits 16 bits in every model."""
_NUMBER: Final = struct.Struct(">Hh")
_MARK: Final = struct.Struct(">" + "Hh" * NUMBERS_EACH)
GROUP_BYTES: Final = GROUP_TOKENS * NUMBERS_EACH * _NUMBER.size


class Fingerprinter:
    """Takes the marks of one answer's tokens in order, and has a fingerprint of every whole group so far."""

    def __init__(self, bytes_max: int | None = None) -> None:
        """``bytes_max`` bounds what is kept: the answer's beginning."""
        self._found, self._bytes_max = bytearray(), bytes_max

    def add(self, marks: Iterable[bytes]) -> None:
        """Take the next tokens' marks; an empty one is of an engine that shows no states."""
        for mark in marks:
            if self._bytes_max is None or len(self._found) < self._bytes_max:
                self._found += mark

    def found(self) -> bytes:
        """Return the fingerprints of the whole groups; tokens after the last one have none."""
        return bytes(self._found[: len(self._found) // GROUP_BYTES * GROUP_BYTES])


def marks(hidden: Tensor) -> list[bytes]:
    """Return the largest numbers of each row of hidden states (n, D): a token's part of its group."""
    places = hidden.abs().topk(NUMBERS_EACH, dim=-1).indices
    bits = hidden.gather(1, places).to(torch.bfloat16).view(torch.int16)
    # One transfer from the device for all rows.
    both = torch.stack((places, bits.long()), -1).cpu().flatten(1).tolist()
    return [_MARK.pack(*numbers) for numbers in both]


def distance(claimed: bytes, hidden: Tensor) -> list[float]:
    """Return, for each group in ``claimed``, the relative error of its numbers against ``hidden`` (T, D).

    0 is the same numbers. Places are checked as well as values: a place outside the model counts as 0 there.

    Raises:
        ValueError: ``claimed`` is not of whole groups, or has more of them than there are states.
    """
    groups, rest = divmod(len(claimed), GROUP_BYTES)
    if rest or groups * GROUP_TOKENS > len(hidden):
        raise ValueError(f"a fingerprint of {len(claimed)} bytes for {len(hidden)} tokens")
    errors = []
    for group in range(groups):
        places, values = _read(claimed[group * GROUP_BYTES : (group + 1) * GROUP_BYTES])
        rows = hidden[group * GROUP_TOKENS : (group + 1) * GROUP_TOKENS].float().cpu()
        known = places < rows.shape[1]
        mine = rows.gather(1, places.clamp(max=rows.shape[1] - 1)) * known
        # The larger norm below: neither a claim of zeros nor a huge one looks close.
        scale = max(float(mine.norm()), float(values.norm()), 1e-30)
        error = float((values - mine).norm()) / scale
        # NaN and infinity are values that a bfloat16 can claim.
        errors.append(error if error == error and error < 1e30 else 1e30)
    return errors


def _read(group: bytes) -> tuple[Tensor, Tensor]:
    pairs = list(_NUMBER.iter_unpack(group))
    places = torch.tensor([column for column, _ in pairs]).view(GROUP_TOKENS, NUMBERS_EACH)
    values = torch.tensor([value for _, value in pairs], dtype=torch.int16).view(torch.bfloat16).float()
    return places, values.view(GROUP_TOKENS, NUMBERS_EACH)
