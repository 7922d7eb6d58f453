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
# A nucleus is nearly always made of tokens as likely as the first of these; to sort all 49,000 of a vocabulary
# takes 4 ms, to find the 256 likeliest 0.3 ms, and those above a threshold 0.03 ms.
_THRESHOLDS: Final = (2**-10, 2**-18, 0.0)


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
    for threshold in _THRESHOLDS:
        candidates = (probabilities >= threshold).nonzero().squeeze(-1)
        likely = probabilities[candidates]
        if float(likely.sum(dtype=torch.float64)) >= top_p:
            break
    if not len(likely):
        # Of NaN, as half precision gives for some prompts, nothing is likely. One answer is nonsense then; to fail
        # here would end every other job of this worker.
        return candidates.new_zeros(1)
    likeliest = likely.sort(descending=True).values
    before = likeliest.double().cumsum(-1) - likeliest
    border = likeliest[before < top_p][-1]
    return candidates[likely >= border]


def gumbel_noise(seed: int, position: int, tokens: Tensor) -> Tensor:
    """Return float32 Gumbel noise for ``tokens`` (int64) at one position: argmax(logits + noise) is a sample."""
    key = _mix_64(seed ^ _mix_64(position))
    bits = _mix_32(tokens ^ (key & _MASK_32))
    bits = _mix_32(bits.bitwise_xor_(key >> 32))
    # Doubles: the largest of 2^32 steps below 1 is lost in float32, and its logarithm would be 0.
    uniform = bits.double().add_(0.5).div_(1 << 32)
    return uniform.log_().neg_().log_().neg_().float()


def _mix_64(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def _mix_32(x: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018) on int64 tensors that hold 32 bits: products wrap, the low bits are right.

    Changes ``x``, which its caller has just made.
    """
    x ^= x >> 16
    x = x.mul_(0x7FEB352D).bitwise_and_(_MASK_32)
    x ^= x >> 15
    x = x.mul_(0x846CA68B).bitwise_and_(_MASK_32)
    x ^= x >> 16
    return x
