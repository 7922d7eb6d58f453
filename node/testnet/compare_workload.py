"""What ``compare`` orders, when, and when it kills: all drawn from a seed, the same for every arm. Pure."""

import random
from dataclasses import dataclass
from typing import Final

from node.testnet.real_client import Request

_ASKS: Final = (
    "Tell me a long story about {}.",
    "Describe {} to somebody who has never seen it.",
    "Write a letter in which {} matters.",
    "What would change without {}?",
)
_SUBJECTS: Final = (
    "a fox", "the sea", "an old clock", "two brothers", "a bridge", "winter", "a map", "the night train",
)  # fmt: skip
# After enough answers to see the arm undisturbed, before the last ones: some are cut, some come afterwards.
_STRIKE_BETWEEN: Final = (0.3, 0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of one round. Times are in units of what one answer takes alone."""

    requests: tuple[Request, ...]
    arrivals: tuple[float, ...]
    """When each request is made, whatever has become of those before it."""
    strike_at: float
    """The first piece of an answer after this moment names the node that is killed."""


def draw_workload(seed: str, model: str, *, requests: int, concurrency: int, tokens_max: int) -> Workload:
    """Return what ``seed`` makes: Poisson arrivals, ``concurrency`` of them in the time of one answer.

    Every second request samples; in fp32 a seed still gives the same text on every node.
    """
    rng = random.Random(f"compare/{seed}")
    drawn = tuple(
        Request(
            model=model,
            prompt=f"{number + 1}: {rng.choice(_ASKS).format(rng.choice(_SUBJECTS))}",
            seed=rng.randrange(1 << 31),
            temperature=number % 2 * 0.8,
            tokens_max=tokens_max,
        )
        for number in range(requests)
    )
    arrivals = [0.0]
    while len(arrivals) < requests:
        arrivals.append(arrivals[-1] + rng.expovariate(concurrency))
    return Workload(
        requests=drawn, arrivals=tuple(arrivals), strike_at=rng.uniform(*_STRIKE_BETWEEN) * arrivals[-1]
    )
