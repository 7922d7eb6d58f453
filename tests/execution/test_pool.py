"""Which device a model goes to, and what is told when none takes it or its worker dies meanwhile."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.errors import ExecutionError, ModelError, WorkerDiedError
from node.execution.frames import Prepared
from node.execution.pool import WorkerPool
from node.metrics import Metrics
from protocol.task import GenerateInput, Sampling
from protocol.units import ModelId
from tests.execution.test_loading import Model

MODEL = Model("m")


class Store:
    def models(self) -> list[Model]:
        return [MODEL]


class FakeDevice:
    """A device whose worker takes a model, or says why not."""

    is_alive, is_lost = True, False

    def __init__(self, name: str, free_bytes: int, refusal: Exception | None = None) -> None:
        self.choice = SimpleNamespace(name=name)
        self.asked = 0
        self.free_bytes, self._refusal = free_bytes, refusal
        self.served: tuple[Any, ...] = ()  # Any: a model with nothing but its id

    async def load(self, model: Model) -> str:
        self.asked += 1
        if self._refusal is not None:
            raise self._refusal
        return self.choice.name

    def wants(self, model_id: ModelId) -> bool:
        return False


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:  # Any: its workers are fakes
    async def run_here(sync_fn: Callable[[], object]) -> object:
        return sync_fn()

    monkeypatch.setattr("node.execution.pool.trio.to_thread.run_sync", run_here)

    def make(*devices: object) -> WorkerPool:
        pool = WorkerPool(WorkerSection(devices="cpu"), Store(), ("m",), metrics=Metrics())
        pool._workers = devices  # type: ignore[assignment]  # fakes
        return pool

    return make


async def test_model_goes_to_the_device_with_most_free_memory(pool_of: Callable[..., Any]) -> None:
    pool = pool_of(FakeDevice("cuda:0", 1), FakeDevice("cuda:1", 3), FakeDevice("cuda:2", 2))
    assert await pool.load(MODEL.model_id) == "cuda:1"


async def test_model_goes_to_the_next_device_when_one_does_not_take_it(pool_of: Callable[..., Any]) -> None:
    for refusal in (ExecutionError("pinned", code="memory"), ModelError("no fp16 here")):
        pool = pool_of(FakeDevice("cuda:0", 1), FakeDevice("cuda:1", 3, refusal), FakeDevice("cuda:2", 2))
        assert await pool.load(MODEL.model_id) == "cuda:2"


class DeadDevice(FakeDevice):
    """Its worker is being restarted."""

    is_alive = False


async def test_model_that_kills_a_worker_is_tried_on_no_other_device(pool_of: Callable[..., Any]) -> None:
    killed = FakeDevice("cuda:1", 3, WorkerDiedError("killed", code="worker_died"))
    others = [FakeDevice("cuda:0", 1), FakeDevice("cuda:2", 2)]
    with pytest.raises(WorkerDiedError, match="killed"):
        await pool_of(killed, *others).load(MODEL.model_id)
    assert [device.asked for device in others] == [0, 0]


async def test_model_goes_to_the_next_device_when_one_was_dead_before(pool_of: Callable[..., Any]) -> None:
    dead = DeadDevice("cuda:1", 3)
    assert await pool_of(FakeDevice("cuda:0", 1), dead).load(MODEL.model_id) == "cuda:0"
    assert dead.asked == 0


async def test_error_names_the_device_that_is_being_restarted_when_the_others_are_full(
    pool_of: Callable[..., Any],
) -> None:
    full, lost = FakeDevice("cuda:0", 2, ExecutionError("8 bytes free", code="memory")), DeadDevice("cuda:2", 1)
    lost.is_lost = True
    with pytest.raises(WorkerDiedError) as failed:
        await pool_of(full, DeadDevice("cuda:1", 0), lost).load(MODEL.model_id)
    assert str(failed.value) == (
        "none of 2 devices takes the model: cuda:0: 8 bytes free; cuda:1: its worker is being restarted"
    )


async def test_error_has_each_devices_reason_when_none_takes_the_model(pool_of: Callable[..., Any]) -> None:
    full = FakeDevice("cuda:0", 1, ExecutionError("8 bytes free", code="memory"))
    busy = FakeDevice("cuda:1", 2, ExecutionError("jobs run", code="model_busy"))
    odd = FakeDevice("cuda:2", 3, ModelError("no fp16 here"))
    with pytest.raises(ExecutionError) as failed:
        await pool_of(full, busy, odd).load(MODEL.model_id)
    assert failed.value.code == "model_busy"
    assert str(failed.value) == (
        "none of 3 devices takes the model: cuda:2: no fp16 here; cuda:1: jobs run; cuda:0: 8 bytes free"
    )
    with pytest.raises(ExecutionError, match=r"^no fp16 here$") as alone:
        await pool_of(odd).load(MODEL.model_id)
    assert alone.value.code == "load"


async def test_error_says_that_workers_died_when_no_device_has_one(pool_of: Callable[..., Any]) -> None:
    for devices in ([DeadDevice("cuda:0", 0), DeadDevice("cuda:1", 0)], []):
        with pytest.raises(WorkerDiedError):
            await pool_of(*devices).load(MODEL.model_id)


class Books:
    """What one worker has loaded; ``process`` takes the requests."""

    def __init__(self, process: Any) -> None:  # Any: stands for a WorkerProcess
        self.process = process
        self.open_request = process.open_request

    def is_loaded(self, model_id: ModelId) -> bool:
        return True

    def use(self, model_id: ModelId) -> trio.CancelScope:
        return trio.CancelScope()


class FakeWorker:
    """A worker that was asked by ``asked``; a dead one takes no request."""

    jobs = 0
    number = 1

    def __init__(self) -> None:
        self.is_dead, self.asked = False, 0

    def open_request(self, events_max: int) -> "FakeWorker":
        if self.is_dead:
            raise WorkerDiedError("killed", code="worker_died")
        return self

    def __enter__(self) -> "FakeWorker":
        return self

    def __exit__(self, *_: object) -> None: ...

    async def send(self, frame: object) -> None:
        self.asked += 1

    async def receive(self) -> Prepared:
        return Prepared(request=1, tokens=1)


class RestartedDevice(FakeDevice):
    """Its worker dies while a model is loaded again for a job, and the next one serves before that is heard."""

    def __init__(self) -> None:
        super().__init__("cpu", 1)
        self.served = (SimpleNamespace(model_id=MODEL.model_id, name="m"),)
        self.workers = [FakeWorker()]
        self.may_go_on = trio.Event()

    @property
    def process(self) -> FakeWorker:
        return self.workers[-1]

    @property
    def models(self) -> Books:
        return Books(self.process)

    async def load_again(self, model_id: ModelId) -> Books:
        models = self.models
        await self.may_go_on.wait()
        return models

    def restart(self) -> None:
        self.process.is_dead = True
        self.workers.append(FakeWorker())
        self.may_go_on.set()


@pytest.mark.parametrize("what", ["prepare", "score"])
async def test_job_fails_as_its_workers_and_asks_nothing_of_the_next_one_when_that_serves_already(
    pool_of: Callable[..., Any], autojump_clock: trio.testing.MockClock, what: str
) -> None:
    device = RestartedDevice()
    pool = pool_of(device)

    async def ask() -> None:
        task = GenerateInput(prompt="a")
        if what == "prepare":
            await pool.prepare("k", MODEL.model_id, task, 4)
        else:
            await pool.score(MODEL.model_id, task, [1], Sampling())

    async def expect_death() -> None:
        with pytest.raises(WorkerDiedError, match="killed"):
            await ask()

    async with trio.open_nursery() as asking:
        asking.start_soon(expect_death)
        await trio.testing.wait_all_tasks_blocked()
        device.restart()
    assert [worker.asked for worker in device.workers] == [0, 0]
    assert pool._held == {}
