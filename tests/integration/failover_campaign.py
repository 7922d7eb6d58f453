"""Strikes providers in the middle of answers, again and again, and keeps what each client's stream showed.

Lanes run side by side: while one waits for a frozen provider to be given up, another kills. Each lane strikes
whoever serves its own order at that moment, and nobody that another lane has struck.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from node.testnet.interrupts import Interrupts
from node.testnet.network import Plan
from node.testnet.real_client import Request, Told, order, wait_known
from node.testnet.real_fleet import Death, Fleet

BASE_CONFIG = (Path(__file__).parents[2] / "configs" / "testnet.toml").read_text("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One strike and the order that it hit."""

    request: Request
    victim: str
    after: int
    """Pieces that the client had when it was struck."""
    verdict_s: float | None
    """From the signal to the requester's word that it passes this one over; None when all had come already."""
    gap_s: float
    """The longest silence that the client saw from the signal on."""
    told: Told


def make_plan(folder: Path, store: Path, *, providers: int, dtype: str, models: tuple[str, ...]) -> Plan:
    base = BASE_CONFIG.replace("[worker]\n", f'[worker]\ndtype = "{dtype}"\n')
    return Plan(
        folder=folder, nodes=providers + 1, providers=providers, models_dir=store, base_config=base, models=models
    )


@contextmanager
def running(plan: Plan) -> Iterator[Fleet]:
    fleet = Fleet(plan)
    fleet.up(Interrupts())
    try:
        yield fleet
    finally:
        fleet.down()


class Campaign:
    """Strikes the providers of one fleet for one requester."""

    def __init__(self, fleet: Fleet, requests: Sequence[Request], seed: int) -> None:
        self.fleet = fleet
        self.requests = requests
        self.undisturbed: dict[Request, Told] = {}
        self.outcomes: dict[str, list[Outcome]] = {"kill": [], "freeze": []}
        self.too_late = 0
        # With fewer providers that stand, an order might find nobody: that would be another test.
        self.standing_min = min(len(fleet.providers) // 2, 3)
        self._rng = random.Random(seed)
        self._struck: set[str] = set()
        self._changed = threading.Condition()

    @property
    def requester(self) -> str:
        return self.fleet.requesters[0]

    @property
    def _standing(self) -> int:
        return len(self.fleet.providers) - len(self._struck)

    def run_undisturbed(self) -> None:
        """Order everything once, each from the next provider, before anybody is struck."""
        names, nodes = self.fleet.providers, self.fleet.nodes
        wait_known([nodes[self.requester]], [nodes[name] for name in names])
        for number, request in enumerate(self.requests):
            peer_id = nodes[names[number % len(names)]].peer_id
            told = order(nodes[self.requester], request, on=peer_id)
            assert told.complete, told
            self.undisturbed[request] = told

    def lane(self, kind: str, count: int) -> None:
        """Strike until there are ``count`` strikes of this kind that hit an answer in its middle."""
        strike = self.kill_once if kind == "kill" else self.freeze_once
        while len(self.outcomes[kind]) < count:
            with self._changed:
                standing = self._changed.wait_for(lambda: self._standing > self.standing_min, timeout=120)
                assert standing, f"struck for two minutes: {self._struck}"
            outcome = strike()
            with self._changed:
                if outcome is None or (outcome.verdict_s is None and outcome.told.complete):
                    self.too_late += 1
                    assert self.too_late <= 50, outcome
                else:
                    self.outcomes[kind].append(outcome)

    def kill_once(self) -> Outcome | None:
        """Kill the provider of one order with SIGKILL; it is started again meanwhile."""

        def hit(name: str) -> float:
            death = self.fleet.kill(name)
            threading.Thread(target=self._bring_back, args=(death,), daemon=True).start()
            return death.at

        return self._strike(hit)

    def freeze_once(self) -> Outcome | None:
        """Freeze the provider of one order with SIGSTOP until the order has ended."""
        struck: list[str] = []

        def hit(name: str) -> float:
            struck.append(name)
            return self.fleet.freeze(name)

        try:
            return self._strike(hit)
        finally:
            for name in struck:
                self.fleet.thaw(name)
                self._stands(name)

    def _strike(self, hit: Callable[[str], float]) -> Outcome | None:
        with self._changed:
            request = self._rng.choice(self.requests)
            after = self._rng.randint(1, request.tokens_max * 6 // 10)
        hits: list[tuple[str, float, int]] = []

        def watch(told: Told) -> None:
            if hits or len(told.pieces) < after or not told.peer_id:
                return
            name = self.fleet.node(told.peer_id).name
            with self._changed:
                if name in self._struck or self._standing <= self.standing_min:
                    return
                self._struck.add(name)
            hits.append((name, hit(name), len(told.pieces)))

        told = order(self.fleet.nodes[self.requester], request, watch)
        if not hits:
            assert told.complete, told
            return None
        name, at, pieces = hits[0]
        verdict_at = told.passed_over_at(self.fleet.nodes[name].peer_id, at)
        times = [time for time in told.times if time >= at]
        return Outcome(
            request=request,
            victim=name,
            after=pieces,
            verdict_s=None if verdict_at is None else verdict_at - at,
            gap_s=max((b - a for a, b in zip([at, *times], times, strict=False)), default=0.0),
            told=told,
        )

    def _bring_back(self, death: Death) -> None:
        self.fleet.bury(death)
        self.fleet.start_soon(death.name).join()
        self._stands(death.name)

    def _stands(self, name: str) -> None:
        with self._changed:
            self._struck.discard(name)
            self._changed.notify_all()


def run_lanes(campaign: Campaign, *lanes: tuple[str, int]) -> None:
    """Run lanes side by side; raise what the first of them raised."""
    raised: list[BaseException] = []

    def run(kind: str, count: int) -> None:
        try:
            campaign.lane(kind, count)
        except BaseException as exc:
            raised.append(exc)
            raise

    threads = [threading.Thread(target=run, args=lane, daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def make_requests(model: str, count: int, *, tokens: tuple[int, int], seed: int) -> list[Request]:
    """Return different orders, every second one greedy."""
    rng = random.Random(seed)
    subjects = (
        "a fox",
        "the sea",
        "an old clock",
        "two brothers",
        "a bridge",
        "winter",
        "a map",
        "the night train",
    )
    request = Request(model=model, prompt="", seed=0, temperature=0, tokens_max=0)
    return [
        replace(
            request,
            prompt=f"{number}: tell me a long story about {rng.choice(subjects)}.",
            seed=rng.randrange(1 << 31),
            temperature=number % 2 * 0.8,
            tokens_max=rng.randint(*tokens),
        )
        for number in range(count)
    ]
