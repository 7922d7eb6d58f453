"""What happens in a scenario that runs on real daemons, drawn from one seed: orders, and faults with their times.

The rates are ``scenarios.py``'s, in real minutes. Signals stand for faults: what would need another kernel, disk,
clock or network than the daemons have is named in ``not_applied``.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from node.testnet.real_client import Request
from node.testnet.scenarios import Scenario

StrikeKind = Literal["kill", "freeze", "kill worker", "freeze worker"]

# A glitch is a link that swallows everything for part of a second: a daemon that stands still looks the same.
_FREEZE_S: Final = (0.2, 0.9)
_WORKER_FREEZE_S: Final = (2.0, 8.0)
_NOT_APPLIED: Final = (
    "power_cuts", "partitions", "slow_disks", "slow_links", "clock_jumps", "skew_s", "strangers", "gossip_loss",
    "lies",
)  # fmt: skip
# Each is run undisturbed before the faults: as many as that is worth.
_REQUESTS_MAX: Final = 12
_SUBJECTS: Final = ("a fox", "the sea", "an old clock", "two brothers", "a bridge", "winter", "a map", "a train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One fault; a killed daemon starts again, and a frozen process goes on, after ``for_s``."""

    at_s: float
    kind: StrikeKind
    node: str
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One order."""

    at_s: float
    node: str
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    requests: tuple[Request, ...]
    strikes: tuple[Strike, ...]
    arrivals: tuple[Arrival, ...]
    not_applied: tuple[str, ...]
    """Faults that the scenario has and this cannot do."""


def draw_script(
    scenario: Scenario, seed: int, *, providers: Sequence[str], requesters: Sequence[str], model: str
) -> Script:
    """Return what ``seed`` makes of ``scenario``."""
    rng = random.Random(f"real/{scenario.name}/{seed}")
    requests = tuple(_draw_request(rng, model, number) for number in range(min(scenario.jobs, _REQUESTS_MAX)))
    everybody = (*providers, *requesters)
    strikes = [
        *_draw_strikes(rng, scenario, "kill", nodes=everybody),
        *_draw_strikes(rng, scenario, "freeze", nodes=everybody),
        *_draw_strikes(rng, scenario, "kill worker", nodes=providers),
        *_draw_strikes(rng, scenario, "freeze worker", nodes=providers),
    ]
    arrivals = [
        Arrival(at_s=rng.uniform(0, scenario.faults_s), node=rng.choice(requesters), request=rng.choice(requests))
        for _ in range(scenario.jobs)
    ]
    return Script(
        requests=requests,
        strikes=tuple(sorted(strikes, key=lambda it: it.at_s)),
        arrivals=tuple(sorted(arrivals, key=lambda it: it.at_s)),
        not_applied=tuple(name for name in _NOT_APPLIED if getattr(scenario, name)),
    )


def _draw_request(rng: random.Random, model: str, number: int) -> Request:
    return Request(
        model=model,
        prompt=f"{number}: tell me a story about {rng.choice(_SUBJECTS)}.",
        seed=rng.randrange(1 << 31),
        temperature=number % 2 * 0.8,
        tokens_max=rng.randint(24, 96),
    )


def _draw_strikes(
    rng: random.Random, scenario: Scenario, kind: StrikeKind, *, nodes: Sequence[str]
) -> Iterator[Strike]:
    match kind:
        case "kill":
            per_minute, for_s = scenario.crashes, scenario.down_s
        case "freeze":
            per_minute, for_s = scenario.glitches, _FREEZE_S
        case "kill worker":
            per_minute, for_s = scenario.worker_deaths, (0.0, 0.0)
        case "freeze worker":
            per_minute, for_s = scenario.worker_hangs, _WORKER_FREEZE_S
    at_s = 0.0
    while per_minute and (at_s := at_s + rng.expovariate(per_minute / 60)) < scenario.faults_s:
        yield Strike(at_s=at_s, kind=kind, node=rng.choice(nodes), for_s=rng.uniform(*for_s))
