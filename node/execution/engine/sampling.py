"""How the next token is chosen from logits: greedy, or temperature and nucleus with counter-based noise (spec 04).

The noise of a token depends on (seed, position, token) alone, by integer arithmetic that is the same on every
device: whoever knows seed and logits can repeat the choice, whatever else ran in the batch.
"""

from collections.abc import Sequence as Items
from typing import Final

import torch
from torch import Tensor

from protocol.task import Sampling

_MASK_32: Final = (1 << 32) - 1
_MASK_64: Final = (1 << 64) - 1
# A nucleus is nearly always among the likeliest few hundred; sorting all logits is the exception.
_LIKELIEST: Final = 256


def choose(logits: Tensor, samplings: Items[Sampling], positions: Items[int]) -> list[int]:
    """Return one token for each row of ``logits`` (N, V) float32; ``positions`` count answer tokens from 0."""
    greedy = logits.argmax(-1)
    if all(sampling.temperature_milli == 0 for sampling in samplings):
        return _to_list(greedy)
    rows = [
        greedy[i] if sampling.temperature_milli == 0 else _sample(logits[i], sampling, positions[i])
        for i, sampling in enumerate(samplings)
    ]
    # One transfer from the device for all rows.
    return _to_list(torch.stack(rows))


def _to_list(tokens: Tensor) -> list[int]:
    values: list[int] = tokens.tolist()
    return values


def _sample(logits: Tensor, sampling: Sampling, position: int) -> Tensor:
    scaled = logits * (1000 / sampling.temperature_milli)
    if sampling.top_p_milli == 1000:
        candidates = torch.arange(len(scaled), device=scaled.device)
    else:
        candidates = nucleus(scaled, sampling.top_p_milli)
    noise = gumbel_noise(sampling.seed, position, candidates)
    return candidates[(scaled[candidates] + noise).argmax()]


def nucleus(scaled: Tensor, top_p_milli: int) -> Tensor:
    """Return the tokens of the smallest likeliest set whose mass reaches top-p, in ascending order.

    Tokens as likely as the least likely member belong too: which of them a sort puts first is not defined.
    """
    probabilities = scaled.softmax(-1)
    top_p = top_p_milli / 1000
    likeliest = probabilities.topk(min(_LIKELIEST, len(probabilities))).values
    if float(likeliest.double().sum()) < top_p:
        likeliest = probabilities.sort(descending=True).values
    before = likeliest.double().cumsum(-1) - likeliest
    border = likeliest[before < top_p][-1]
    return (probabilities >= border).nonzero().squeeze(-1)


def gumbel_noise(seed: int, position: int, tokens: Tensor) -> Tensor:
    """Return float32 Gumbel noise for ``tokens`` (int64) at one position: argmax(logits + noise) is a sample."""
    key = _mix_64(seed ^ _mix_64(position))
    bits = _mix_32(tokens ^ (key & _MASK_32))
    bits = _mix_32(bits ^ (key >> 32))
    # Doubles: the largest of 2^32 steps below 1 is lost in float32, and its logarithm would be 0.
    uniform = (bits.double() + 0.5) / (1 << 32)
    return -torch.log(-torch.log(uniform)).float()


def _mix_64(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def _mix_32(x: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018) on int64 tensors that hold 32 bits: products wrap, the low bits are right."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK_32
    return x ^ (x >> 16)
