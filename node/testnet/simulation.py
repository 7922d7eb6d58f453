"""One simulated run: a world, its orders and faults from one seed, in virtual time, judged from outside.

The same seed gives the same trace in every process: trio schedules deterministically, every random draw comes from
the seed, and nothing waits for a thread. Both switches for trio are private names of it; a test in
``tests/testnet`` compares traces over processes and is the alarm when trio changes.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

from node.testnet.checks import Violation
from node.testnet.faults import Faults
from node.testnet.lossy_wire import LossyWire
from node.testnet.orders import OrderFile, draw_orders, place, probes
from node.testnet.scenarios import Scenario
from node.testnet.settled import check_settled
from node.testnet.witness import Event
from node.testnet.world import World

HEALING_S: Final = 90.0
"""From the last fault to the orders that have to be filled."""
ENDING_S: Final = 60.0
"""Within this after its deadline, or the last fault, every order has to have ended."""
SETTLING_S: Final = 60.0
"""Longer than every timer that a contract leaves behind."""
SAMPLE_S: Final = 2.0
BOOT_SPREAD_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run was and what it showed."""

    scenario: str
    seed: int
    orders: Counter[str]
    """How many ended in each way."""
    contracts: int
    moved: int
    """Orders with more than one contract: what one provider left undone went on at another."""
    faults: Counter[str]
    """What was broken, by kind."""
    packets: int
    packets_lost: int
    """Both are 0 where no packet is ever lost."""
    skew_s: float
    """How far the worst ordinary node's clock was off when the world began."""
    stranger_skew_s: float
    """The same of strangers."""
    last_end_s: float
    """From the last fault to the end of the last order that was placed among faults."""
    virtual_s: float
    cpu_s: float
    trace: str
    violations: tuple[Violation, ...]
    history: tuple[Event, ...]
    """Of the job or contract of the first violation; empty without one."""
    items: tuple[str, ...]
    """The orders and faults that there were, for ``simulate``'s ``only``."""

    @property
    def crashes(self) -> int:
        return self.faults["kill"] + self.faults["power cut"]

    @property
    def partitions(self) -> int:
        return self.faults["partition"]


def simulate(
    scenario: Scenario, seed: int, *, jobs: int | None = None, only: frozenset[str] | None = None
) -> Report:
    """Run a scenario with a seed and return what came of it.

    ``jobs`` replaces the scenario's number of orders; ``only`` names the orders and faults to keep.
    """
    began = time.process_time()
    world = World(scenario, seed, only)
    # Faults move clocks: both are read before.
    skew_s, stranger_skew_s = (
        max((abs(node.clock.skew_s) for node in world.nodes if node.is_stranger is strange), default=0.0)
        for strange in (False, True)
    )
    faults = Faults(world)
    files: list[OrderFile] = []
    count = scenario.jobs if jobs is None else jobs
    try:
        with _deterministic(seed):
            virtual_s = trio.run(_run, world, faults, files, count, clock=MockClock(autojump_threshold=0))
    finally:
        for node in world.nodes:
            node.disk.close()
    checks, wire = world.checks, world.fabric.wire
    first = checks.violations[0] if checks.violations else None
    return Report(
        scenario=scenario.name,
        seed=seed,
        orders=Counter(file.outcome for file in files),
        contracts=len(checks.files),
        moved=sum(file.contracts > 1 for file in files),
        faults=faults.count,
        packets=wire.sent if isinstance(wire, LossyWire) else 0,
        packets_lost=wire.lost if isinstance(wire, LossyWire) else 0,
        skew_s=skew_s,
        stranger_skew_s=stranger_skew_s,
        last_end_s=_last_end_s(world, files, count),
        virtual_s=virtual_s,
        cpu_s=time.process_time() - began,
        trace=world.witness.trace,
        violations=tuple(checks.violations),
        history=() if first is None else tuple(world.witness.about(job=first.job, contract=first.contract)),
        items=tuple(world.items),
    )


def _last_end_s(world: World, files: list[OrderFile], jobs: int) -> float:
    ended_at = [it.ended_at for it in files if it.number < jobs and it.outcome != "not_placed"]
    return max([0.0, *(at - world.scenario.faults_s for at in ended_at)])


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Make trio schedule the same way in every run with this seed."""
    was, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc] # Hypothesis sets it, too
    trio_run._r.seed(seed)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = was  # type: ignore[misc] # as above
        trio_run._r.setstate(state)


async def _run(world: World, faults: Faults, files: list[OrderFile], jobs: int) -> float:
    """Run the world and return how long it lasted, in virtual seconds."""
    async with trio.open_nursery() as nursery:
        await nursery.start(world.fabric.run)
        nursery.start_soon(_stop_at_violation, world, nursery.cancel_scope)
        nursery.start_soon(_sample_tasks, world)
        rng = world.rng("boot")
        for node in world.nodes:
            nursery.start_soon(world.live, node)
            await trio.sleep(rng.uniform(0, BOOT_SPREAD_S / len(world.nodes)))
        async with trio.open_nursery() as troubles:
            troubles.start_soon(faults.run, nursery)
            troubles.start_soon(_place_orders, world, files, jobs)
        await trio.sleep(HEALING_S)
        for file in probes(world, jobs):
            if world.takes(file.item):
                files.append(file)
                place(world, file)
        await _await_orders(world, files)
        await trio.sleep(SETTLING_S)
        check_settled(world)
        nursery.cancel_scope.cancel()
    return trio.current_time()


async def _stop_at_violation(world: World, scope: trio.CancelScope) -> None:
    await world.over.wait()
    scope.cancel()


async def _sample_tasks(world: World) -> None:
    """Note the fewest tasks that each incarnation gets by with: in the end it may have no more."""
    while True:
        await trio.sleep(SAMPLE_S)
        for node in world.nodes:
            if node.inbox is not None:
                node.tasks_min = min(node.tasks_min, node.count_tasks())


async def _place_orders(world: World, files: list[OrderFile], jobs: int) -> None:
    for at, file in draw_orders(world, jobs):
        await trio.sleep_until(at)
        if world.takes(file.item):
            files.append(file)
            place(world, file)


async def _await_orders(world: World, files: list[OrderFile]) -> None:
    for file in files:
        with trio.move_on_at(max(file.due_at, world.scenario.faults_s) + ENDING_S):
            await file.done.wait()
        if not file.outcome:
            world.checks.fail("an order never ended", f"order {file.number} of {file.node.name}", job=file.job)
        elif file.ended_at > file.due_at + ENDING_S:
            world.checks.fail("an order ended too late", f"order {file.number}", job=file.job)
