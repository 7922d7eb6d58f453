import math
import os
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.errors import ExecutionError, WorkerDiedError
from node.execution.device_worker import Changes, DeviceWorker, _Candidate
from node.execution.devices import CpuFacts, DeviceChoice
from node.execution.frames import Probe, Probed, Ready, Setup, ToWorker
from node.execution.loading import DeviceSetup
from node.execution.quarantine import QuarantineRules
from node.execution.spawn import WorkerLimits
from node.execution.watchdog import resident_bytes
from node.execution.worker_rules import WorkerRules
from node.metrics import Metrics
from tests.execution.test_capacity import REPORT
from tests.test_metrics import samples

MEMORY_FREE_BYTES = 1 << 20


@dataclass(eq=False)
class FakeProcess:
    """A worker that is ready once it was woken, and dies when a test says so; it has no process."""

    setup: Setup
    limits: WorkerLimits
    silence_s_max: float = 0.0
    environment: object = None
    command: object = None
    born_at: float = field(default_factory=trio.current_time)
    pid: int | None = None
    death: WorkerDiedError | None = None
    fault: ExecutionError | None = None
    asked: list[ToWorker] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    lingers: bool = False
    """Its process lives on after its death, until a test sets ``over``."""
    memory_bytes_max: int | None = None
    """What it was woken with."""
    _woken: trio.Event = field(default_factory=trio.Event)
    _dead: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        if not self.limits.is_held:
            self._woken.set()

    async def run(self) -> None:
        try:
            await self._dead.wait()
        finally:
            self.die()
            if not self.lingers:
                self.over.set()
        raise WorkerDiedError("died", code="worker_died")

    def die(self) -> None:
        self.death = self.death or WorkerDiedError("died", code="worker_died")
        self._dead.set()

    async def look(self) -> None:
        """Its number is known from the beginning."""

    def wake(self, *, memory_bytes_max: int | None) -> None:
        self.memory_bytes_max = memory_bytes_max
        self._woken.set()

    @property
    def is_held(self) -> bool:
        return not self._woken.is_set()

    async def wait_woken(self) -> None:
        await self._woken.wait()

    async def wait_ready(self) -> Ready:
        return Ready(architecture="avx2", dtypes=("fp32",), runtime="torch 2")

    async def wait_dead(self) -> None:
        await self._dead.wait()

    async def wait_over(self) -> None:
        await self.over.wait()

    # Its one request.

    number = 1

    def open_request(self, events_max: int) -> "FakeProcess":
        return self

    def __enter__(self) -> "FakeProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    async def send(self, frame: ToWorker) -> None:
        self.asked.append(frame)

    async def receive(self) -> Probed:
        if self.fault is not None:
            raise self.fault
        return Probed(request=1)


class Bench:
    """One device whose workers are fakes; ``born`` has them in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, warm_spare: bool, rules: WorkerRules) -> None:
        self.born: list[FakeProcess] = []
        self.fault: ExecutionError | None = None
        """Of every worker that is born from now on."""
        cpu = CpuFacts(name="cpu", memory_total_bytes=1 << 50, memory_free_bytes=MEMORY_FREE_BYTES)
        monkeypatch.setattr("node.execution.device_worker.read_cpu", lambda: cpu)
        monkeypatch.setattr("node.execution.device_worker.WorkerProcess", self._bear)
        self.worker = DeviceWorker(device_setup(warm_spare=warm_spare, rules=rules), Changes())
        self.models: Any = SimpleNamespace(served=(), report=None)  # Any: stands for DeviceModels

        async def load_all(process: object, ready: Ready) -> object:
            return self.models

        self.worker._loader.load_all = load_all  # type: ignore[method-assign, assignment]  # nothing to load

    def _bear(self, setup: Setup, **fields: Any) -> FakeProcess:
        self.born.append(FakeProcess(setup, fault=self.fault, **fields))
        return self.born[-1]

    async def start(self, nursery: trio.Nursery) -> DeviceWorker:
        await nursery.start(self.worker.run)
        await trio.testing.wait_all_tasks_blocked()
        return self.worker


def device_setup(*, warm_spare: bool = True, rules: WorkerRules | None = None) -> DeviceSetup:
    return DeviceSetup(
        choice=DeviceChoice(kind="cpu"),
        config=WorkerSection(devices="cpu", warm_spare=warm_spare),
        threads=1,
        models=(),
        nvml=(),
        environment={},
        metrics=Metrics(),
        rules=WorkerRules() if rules is None else rules,
    )


async def test_spare_that_dies_by_itself_is_replaced_later_and_later(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(monkeypatch, warm_spare=True, rules=WorkerRules(spare_pauses_s=(1.0, 10.0)))
    worker = await bench.start(nursery)
    for pause_s in (1.0, 10.0, 10.0):
        bench.born[-1].die()
        died_at = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        assert worker.state().spare == "none" and worker.state().life == "serving"
        await trio.sleep(pause_s + 0.1)
        assert bench.born[-1].born_at == died_at + pause_s
        assert worker.state().spare in ("loaded", "held", "starting")
    # One that lived for long was healthy: the next one comes soon.
    await trio.sleep(601)
    bench.born[-1].die()
    died_at = trio.current_time()
    await trio.sleep(1.1)
    assert bench.born[-1].born_at == died_at + 1.0
    assert len(bench.born) == 6
    told = [record.__dict__ for record in caplog.records if record.message == "spare died"]
    assert [record["restart_in_s"] for record in told] == [1.0, 10.0, 10.0, 1.0]
    assert all(record["cause"] == "died" and record["device"] == "cpu" for record in told)
    assert samples(worker._setup.metrics)["souk_worker_restarts_total", ("cpu", "worker_died")] == 4


async def test_no_spare_is_started_beside_a_worker_that_is_dead(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(monkeypatch, warm_spare=True, rules=WorkerRules(spare_pauses_s=(5.0,)))
    worker = await bench.start(nursery)
    serving, spare = bench.born
    spare.die()
    await trio.testing.wait_all_tasks_blocked()
    serving.die()
    await trio.sleep(20)
    # The next worker and its own spare, and no third one from the pause that was going on.
    assert len(bench.born) == 4 and worker.state().life == "serving"


async def test_no_spare_is_started_beside_a_worker_that_dies_before_its_spare_is_born(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(monkeypatch, warm_spare=True, rules=WorkerRules())
    # Of a device that holds its models twice: a spare would not wait.
    bench.models.report = replace(REPORT, memory_total_bytes=1 << 50, memory_free_bytes=1 << 50)

    def die_when_serving() -> None:
        if len(bench.born) == 1 and bench.worker.is_alive:
            bench.born[0].die()

    monkeypatch.setattr(bench.worker._changes, "announce", die_when_serving)
    await bench.start(nursery)
    dead, next_one = bench.born[:2]
    assert dead.death is not None and next_one.limits.is_held


async def test_next_worker_is_woken_once_no_process_is_left_of_the_last_one(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = WorkerRules(quarantine=QuarantineRules(restart_s=(0.0,)))
    bench = Bench(monkeypatch, warm_spare=False, rules=rules)
    worker = await bench.start(nursery)
    first = bench.born[0]
    first.lingers = True
    first.die()
    await trio.sleep(60)
    second = bench.born[1]
    assert second.is_held and second.memory_bytes_max is None
    assert worker.state().life == "restarting"
    first.over.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not second.is_held and second.memory_bytes_max == MEMORY_FREE_BYTES
    assert worker.state().life == "serving"


async def test_next_worker_is_born_when_one_dies_and_waits_for_its_turn(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = WorkerRules(quarantine=QuarantineRules(restart_s=(0.0, 3.0)))
    bench = Bench(monkeypatch, warm_spare=False, rules=rules)
    worker = await bench.start(nursery)
    for at, pause_s in enumerate((0.0, 3.0)):
        bench.born[at].die()
        died_at = trio.current_time()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bench.born[at + 1].born_at == died_at
        assert bench.born[at + 1].is_held == bool(pause_s)
        await trio.sleep(pause_s)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert worker.state().life == "serving" and len(bench.born) == at + 2


async def test_next_worker_counts_as_dead_when_it_dies_before_its_turn(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = WorkerRules(quarantine=QuarantineRules(restart_s=(5.0,), pauses_s=(math.inf,)))
    bench = Bench(monkeypatch, warm_spare=False, rules=rules)
    worker = await bench.start(nursery)
    for _ in range(3):
        bench.born[-1].die()
        await trio.sleep(5.1)
    state = worker.state()
    assert state.life == "quarantined" and state.deaths == 3
    # A probe is a fresh process's, which is not begun before its time.
    assert len(bench.born) == 3


async def test_quarantined_device_without_a_model_serves_when_a_fresh_process_computes_what_is_known(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = WorkerRules(quarantine=QuarantineRules(deaths_max=1, pauses_s=(1.0, 5.0)))
    bench = Bench(monkeypatch, warm_spare=False, rules=rules)
    worker = await bench.start(nursery)
    assert bench.born[0].asked == []
    bench.fault = ExecutionError("7 of 9 numbers wrong", code="device_fault")
    bench.born[0].die()
    await trio.sleep(1.1)
    assert worker.state().life == "quarantined"
    assert worker.state().cause == "the probe failed: 7 of 9 numbers wrong"
    bench.fault = None
    await trio.sleep(5.1)
    assert worker.state().life == "serving" and len(bench.born) == 3
    assert bench.born[2].asked == [Probe(request=1, dtype="fp32")]


async def test_change_wakes_everybody_who_waits_and_nobody_who_comes_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changes, woken = Changes(), []

    async def wait(name: str) -> None:
        await changes.wait()
        woken.append(name)

    with trio.move_on_after(1):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait, "early")
            await trio.testing.wait_all_tasks_blocked()
            changes.announce()
            waiting.start_soon(wait, "late")
    assert woken == ["early"]


def test_spare_may_hold_what_the_worker_holds_whose_place_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = CpuFacts(name="cpu", memory_total_bytes=1 << 50, memory_free_bytes=1 << 20)
    monkeypatch.setattr("node.execution.device_worker.read_cpu", lambda: cpu)
    worker = DeviceWorker(device_setup(), Changes())
    assert worker._memory_bytes_max(None) == 1 << 20
    process: Any = SimpleNamespace(pid=os.getpid())  # Any: stands for a WorkerProcess
    held = resident_bytes(os.getpid())
    assert held is not None
    assert worker._memory_bytes_max(_Candidate(process)) >= (1 << 20) + held // 2
