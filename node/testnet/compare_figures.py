"""What the streams of ``compare`` add up to, arm by arm. Pure: nodes and clocks are ``compare.py``'s."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from node.testnet.real_client import Request, Told


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One arm in one round."""

    arm: str
    round: int
    requests: tuple[Request, ...]
    told: tuple[Told, ...]
    """What came of each request, in the same order."""
    seconds: float
    """From the first request to the last end, or to the last arrival if all had failed before."""
    spent_microcredits: int | None
    """Promised for all of them, unfinished ones included; None where nothing is bought."""
    killed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """One arm over all its rounds. Latencies are those of every text that came, also of answers cut later."""

    arm: str
    requests: int
    complete: int
    same_text: int
    """Whole answers equal to those of the undisturbed arm."""
    continued: int
    """Whole answers on which more than one peer worked."""
    failures: tuple[str, ...]
    """How each of the others ended."""
    first_p50_s: float | None
    first_p95_s: float | None
    next_p50_s: float | None
    next_p95_s: float | None
    silence_s: float
    """The longest wait between two pieces of one answer."""
    tokens_per_s: float
    """Of whole answers, by the time of the arm."""
    microcredits_per_million: float | None
    """All that was promised, by the tokens in and out of whole answers."""


def sum_up(rounds: Sequence[Played], undisturbed: str) -> list[ArmFigures]:
    """Return a row for each arm, in the order in which they first appear.

    Args:
        rounds: every arm of every round.
        undisturbed: the arm whose texts the others are compared with.
    """
    expected = {
        (played.round, request): told.text
        for played in rounds
        if played.arm == undisturbed
        for request, told in zip(played.requests, played.told, strict=True)
        if told.complete
    }
    names = dict.fromkeys(played.arm for played in rounds)
    return [_sum_up_arm(name, [it for it in rounds if it.arm == name], expected) for name in names]


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the smallest value that ``percent`` of all do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else None


def _sum_up_arm(name: str, rounds: Sequence[Played], expected: dict[tuple[int, Request], str]) -> ArmFigures:
    orders = [
        (expected.get((played.round, request)), told)
        for played in rounds
        for request, told in zip(played.requests, played.told, strict=True)
    ]
    whole = [(text, told) for text, told in orders if told.complete]
    first = [told.times[0] - told.began_at for _, told in orders if told.times]
    following = [gap for _, told in orders for gap in told.gaps_s]
    tokens_out = sum(told.tokens_out or 0 for _, told in whole)
    return ArmFigures(
        arm=name,
        requests=len(orders),
        complete=len(whole),
        same_text=sum(told.text == text for text, told in whole),
        continued=sum(len(set(told.peers)) > 1 for _, told in whole),
        failures=tuple(told.error or told.broken for _, told in orders if not told.complete),
        first_p50_s=percentile(first, 50),
        first_p95_s=percentile(first, 95),
        next_p50_s=percentile(following, 50),
        next_p95_s=percentile(following, 95),
        silence_s=max((told.gap_s for _, told in orders), default=0.0),
        tokens_per_s=tokens_out / sum(played.seconds for played in rounds),
        microcredits_per_million=_price(rounds, tokens_out + sum(told.tokens_in for _, told in whole)),
    )


def _price(rounds: Sequence[Played], tokens: int) -> float | None:
    spent = [it.spent_microcredits for it in rounds if it.spent_microcredits is not None]
    return sum(spent) * 1e6 / tokens if spent and tokens else None
