"""The books of one device against a worker that answers by a script, with the memory that others leave."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.errors import ExecutionError, WorkerDiedError
from node.execution.devices import CpuFacts, DeviceChoice, report_device
from node.execution.frames import Load, Loaded, Measure, Measured, Ready, ToWorker, Unload, Unloaded
from node.execution.interface import DeviceLoad
from node.execution.inventory import DeviceNow
from node.execution.loading import DeviceModels, DeviceSetup, ModelLoader
from node.execution.memory_plan import plan_items
from node.execution.residency import Residency
from node.execution.worker_rules import WorkerRules
from node.metrics import Metrics
from protocol.units import ModelId

PARAMETERS = 1000
EACH = plan_items(PARAMETERS, slots=1).total_bytes
READY = Ready(architecture="avx2", dtypes=("fp32",), runtime="torch 2")


@dataclass(frozen=True)
class Model:
    name: str
    task: str = "embed"
    folder: Path = Path("/absent")
    parameters: int = PARAMETERS

    @property
    def model_id(self) -> ModelId:
        return ModelId(self.name.encode() * 32)

    def verify(self) -> None: ...


@dataclass
class ScriptedProcess:
    """Answers each request once ``may_answer`` says so; it is its own request."""

    asked: list[str] = field(default_factory=list)
    may_answer: trio.Event = field(default_factory=trio.Event)
    faults: dict[str, ExecutionError] = field(default_factory=dict)
    """What a frame of this name is answered with instead."""
    number = 1
    _heard: trio.Event = field(default_factory=trio.Event)

    def open_request(self, events_max: int, **_: object) -> "ScriptedProcess":
        return self

    def __enter__(self) -> "ScriptedProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    async def send(self, frame: ToWorker) -> None:
        self.asked.append(type(frame).__name__)
        self._heard.set()
        self._heard = trio.Event()

    async def wait_asked(self, count: int) -> None:
        """Return once so many frames have come: what runs in a thread counts as blocked, too."""
        while len(self.asked) < count:
            await self._heard.wait()

    async def receive(self) -> object:
        frame = self.asked[-1]
        await self.may_answer.wait()
        if frame in self.faults:
            raise self.faults[frame]
        return {
            Load.__name__: Loaded(request=1),
            Unload.__name__: Unloaded(request=1),
            Measure.__name__: Measured(request=1, tokens_per_s_milli=7),
        }[frame]


class Device:
    def __init__(self, *names: str, models: int) -> None:
        setup = DeviceSetup(
            choice=DeviceChoice(kind="cpu"),
            config=WorkerSection(devices="cpu", slots=1),
            threads=1,
            models=tuple(Model(name) for name in names),
            nvml=(),
            environment={},
            metrics=Metrics(),
            rules=WorkerRules(memory_step_bytes=0),
        )
        setup.measurements.under("cpu", "test")
        cpu = CpuFacts(name="cpu", memory_total_bytes=1 << 50, memory_free_bytes=1 << 50)
        self.process: Any = ScriptedProcess()  # Any: stands for a WorkerProcess
        self.residency = Residency(models * EACH)
        self.models = DeviceModels(ModelLoader(setup), self.process, READY, self.residency)
        self.models.report = report_device(setup.choice, READY, nvml=(), cpu=cpu, measured=None)

    async def lose_memory(self) -> None:
        """Tell that other programs have taken all there is."""
        await self.models.follow(DeviceNow(memory_free_bytes=0, own_bytes=0, load=DeviceLoad()))


async def test_memory_that_shrinks_during_a_load_is_looked_at_again_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device("a", "b", models=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.models.load, Model("a"))
        await trio.testing.wait_all_tasks_blocked()
        # At once: the other devices are not kept waiting for a load of minutes.
        with trio.move_on_after(1) as at_once:
            await device.lose_memory()
        device.process.may_answer.set()
        assert not at_once.cancelled_caught and device.residency.budget_bytes == 2 * EACH
    assert [model.is_loaded for model in device.models.served] == [True]
    await device.lose_memory()
    assert [model.is_loaded for model in device.models.served] == [False]


async def test_model_that_had_a_job_when_memory_shrank_leaves_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device("a", models=1)
    device.process.may_answer.set()
    await device.models.load(Model("a"))
    with device.models.use(Model("a").model_id):
        await device.lose_memory()
        assert device.models.is_loaded(Model("a").model_id)
    await device.lose_memory()
    assert not device.models.is_loaded(Model("a").model_id)


async def test_job_that_comes_while_another_model_makes_room_keeps_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device("a", "b", models=2)
    device.process.may_answer.set()
    for name in ("a", "b"):
        await device.models.load(Model(name))
    device.process.may_answer = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.lose_memory)
        await trio.testing.wait_all_tasks_blocked()
        assert not device.models.is_loaded(Model("a").model_id)
        with device.models.use(Model("b").model_id):
            device.process.may_answer.set()
            await trio.testing.wait_all_tasks_blocked()
            assert device.models.is_loaded(Model("b").model_id)


async def test_second_order_to_load_a_model_waits_until_it_was_measured(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device(models=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.models.load, Model("a"))
        await device.process.wait_asked(1)
        loaded, measured = device.process.may_answer, trio.Event()
        device.process.may_answer = measured
        loaded.set()
        await device.process.wait_asked(2)
        nursery.start_soon(device.models.load, Model("a"))
        await trio.testing.wait_all_tasks_blocked()
        measured.set()
    assert device.process.asked == ["Load", "Measure"]
    assert [model.tokens_per_s_milli for model in device.models.served] == [7]


async def test_model_that_cannot_be_measured_leaves_its_worker_and_loads_at_the_next_try(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device(models=1)
    device.process.may_answer.set()
    device.process.faults["Measure"] = ExecutionError("jobs use this model", code="device_busy")
    with pytest.raises(ExecutionError, match="jobs use"):
        await device.models.load(Model("a"))
    assert device.process.asked == ["Load", "Measure", "Unload"]
    assert device.models.served == () and device.models.free_bytes == EACH
    device.process.faults.clear()
    assert (await device.models.load(Model("a"))).tokens_per_s_milli == 7


async def test_nothing_is_unloaded_from_a_worker_that_died_while_it_measured(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Device(models=1)
    device.process.may_answer.set()
    device.process.faults["Measure"] = WorkerDiedError("killed", code="worker_died")
    with pytest.raises(WorkerDiedError):
        await device.models.load(Model("a"))
    assert device.process.asked == ["Load", "Measure"]
