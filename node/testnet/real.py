"""Runs a scenario against real daemons and judges from outside: what clients were told, and what ledgers say.

The simulator sees every frame and every write; here only streams and files count. Threads, not trio: the faults
must not depend on a scheduler that shares anything with what they hit.
"""

import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from node.testnet.interrupts import Interrupts
from node.testnet.network import Plan
from node.testnet.real_books import Books, read_books
from node.testnet.real_client import Request, Told, order, wait_known
from node.testnet.real_fleet import Fleet
from node.testnet.real_script import Arrival, Script, Strike, draw_script
from node.testnet.scenarios import Scenario

ORDER_S_MAX: Final = 240.0
"""How long a client tries: longer than every time-out on the way."""
PAUSE_S: Final = 1.0
"""What a client waits after a failure before it orders again."""
AT_ONCE_MAX: Final = 8
BREATH_S: Final = 1.0

Timed = TypeVar("Timed", Arrival, Strike)


@dataclass(slots=True, kw_only=True)
class RealReport:
    """What came of one run; ``faults`` is empty when everything held."""

    scenario: str
    seed: int
    jobs: int = 0
    answered: int = 0
    tokens: int = 0
    continued: int = 0
    """Answers that more than one provider gave."""
    failures: Counter[str] = field(default_factory=Counter)
    """Typed failures by code, and orders ``cut`` when their own requester was killed; each was ordered again."""
    strikes: Counter[str] = field(default_factory=Counter)
    not_applied: tuple[str, ...] = ()
    books: Books = field(default_factory=Books)
    faults: list[str] = field(default_factory=list)
    wall_s: float = 0.0


def run_real(
    scenario: Scenario, seed: int, plan: Plan, interrupts: Interrupts, *, jobs: int | None = None
) -> RealReport:
    """Start the scenario's nodes in the plan's folder, let its script happen, and stop them.

    ``plan.models`` names the one model that is ordered.

    Raises:
        TestnetError: a node could not be started.
    """
    began = time.monotonic()
    scenario = scenario if jobs is None else replace(scenario, jobs=jobs)
    plan = replace(plan, nodes=scenario.providers + scenario.requesters, providers=scenario.providers)
    fleet = Fleet(plan)
    fleet.up(interrupts)
    run = _Run(fleet, RealReport(scenario=scenario.name, seed=seed, jobs=scenario.jobs))
    try:
        script = draw_script(
            scenario, seed, providers=fleet.providers, requesters=fleet.requesters, model=plan.models[0]
        )
        run.undisturbed(script)
        run.play(script)
    finally:
        fleet.down()
    report = run.report
    report.books = read_books(fleet)
    report.faults += report.books.faults
    report.faults += run.misbooked()
    report.wall_s = time.monotonic() - began
    return report


class _Run:
    """One script on one fleet."""

    def __init__(self, fleet: Fleet, report: RealReport) -> None:
        self.report = report
        self._fleet = fleet
        self._expected: dict[Request, str] = {}
        self._answers: list[Told] = []
        self._changed = threading.Condition()
        self._settled: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._down: set[str] = set()

    def undisturbed(self, script: Script) -> None:
        """Order everything once before anything goes wrong."""
        nodes = self._fleet.nodes
        buyers = [nodes[name] for name in self._fleet.requesters]
        wait_known(buyers, [nodes[name] for name in self._fleet.providers])
        for request in script.requests:
            told = order(buyers[0], request)
            if not told.complete:
                self.report.faults.append(f"undisturbed, an order ended with {told.error or told.broken}")
            self._expected[request] = told.text

    def play(self, script: Script) -> None:
        """Let the script happen and return when every order and every fault has ended."""
        self.report.not_applied = script.not_applied
        waiting: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        for _ in range(AT_ONCE_MAX):
            _start(self._carry_all, waiting)
        _start(_on_time, script.strikes, lambda strike: _start(self._strike, strike))
        _on_time(script.arrivals, waiting.put)
        for _ in (*script.arrivals, *script.strikes):
            self._settled.get()

    def misbooked(self) -> list[str]:
        """Return the answers whose tokens are not the tokens that were bought for them."""
        bought = self.report.books.tokens_bought
        return [
            f"job {told.job_id}: {told.tokens_out} tokens answered, {bought.get(told.job_id)} bought"
            for told in self._answers
            if bought.get(told.job_id) != told.tokens_out
        ]

    # Orders.

    def _carry_all(self, waiting: "queue.SimpleQueue[Arrival]") -> None:
        while True:
            arrival = waiting.get()
            try:
                self._carry(arrival)
            except Exception as exc:  # the edge of one order: its end would be waited for for ever
                self.report.faults.append(f"an order ended with {exc!r}")
            self._settled.put(None)

    def _carry(self, arrival: Arrival) -> None:
        """Order until there is an answer, as a client would."""
        end = time.monotonic() + ORDER_S_MAX
        while True:
            began = time.monotonic()
            told = order(self._fleet.nodes[arrival.node], arrival.request)
            with self._changed:
                if told.complete:
                    self._judge(told, arrival.request)
                    return
                self.report.failures[self._name_failure(told, arrival.node, began)] += 1
            if time.monotonic() > end:
                self.report.faults.append(
                    f"an order had no answer in {ORDER_S_MAX:g} s: {told.error or told.broken}"
                )
                return
            time.sleep(PAUSE_S)

    def _judge(self, told: Told, request: Request) -> None:
        self._answers.append(told)
        self.report.answered += 1
        self.report.tokens += told.tokens_out or 0
        self.report.continued += sum(phase["phase"] == "contracted" for _at, phase in told.phases) > 1
        if told.text != self._expected[request]:
            self.report.faults.append(f"job {told.job_id}: the text is not that of the undisturbed run")

    def _name_failure(self, told: Told, node: str, began: float) -> str:
        if told.error:
            return told.error
        if node in self._down or any(it.name == node and it.at >= began for it in self._fleet.deaths):
            return "cut"
        self.report.faults.append(f"an order at {node}, which lived, broke off without a word: {told.broken}")
        return told.broken

    # Faults.

    def _strike(self, strike: Strike) -> None:
        name = self._claim(strike)
        try:
            self._hit(strike, name)
            # On a slow machine strikes queue up: who has just come back does something before the next one.
            time.sleep(BREATH_S)
        finally:
            with self._changed:
                self._down.discard(name)
                self._changed.notify_all()
            self._settled.put(None)

    def _hit(self, strike: Strike, name: str) -> None:
        fleet = self._fleet
        match strike.kind:
            case "kill":
                fleet.bury(fleet.kill(name))
                time.sleep(strike.for_s)
                fleet.start_soon(name).join()
            case "freeze":
                fleet.freeze(name)
                time.sleep(strike.for_s)
                fleet.thaw(name)
            case "kill worker":
                fleet.signal_worker(name, signal.SIGKILL)
            case "freeze worker":
                fleet.signal_worker(name, signal.SIGSTOP)
                time.sleep(strike.for_s)
                fleet.signal_worker(name, signal.SIGCONT)

    def _claim(self, strike: Strike) -> str:
        """Return whom to strike: the script's choice, else the next of its kind; never the last provider.

        Two faults of one process at once would undo each other.
        """
        fleet = self._fleet
        like = fleet.requesters if strike.node in fleet.requesters else fleet.providers
        spared = min(len(like) - 1, 1)
        with self._changed:
            self._changed.wait_for(lambda: len(self._down.intersection(like)) < len(like) - spared)
            name = next(it for it in (strike.node, *like) if it not in self._down)
            self._down.add(name)
            self.report.strikes[strike.kind] += 1
        return name


def _start(run: Callable[..., None], *args: object) -> None:
    threading.Thread(target=run, args=args, daemon=True).start()


def _on_time(events: Sequence[Timed], happen: Callable[[Timed], None]) -> None:
    began = time.monotonic()
    for event in events:
        time.sleep(max(began + event.at_s - time.monotonic(), 0))
        happen(event)
