import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from node.api.errors import ApiError
from node.api.shelf import Shelf
from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.execution.interface import ServedModel
from node.models.holding import Holds, is_held
from node.models.store import ModelStore
from node.models.stored import StoredModel
from protocol.units import ModelId
from tests.api.fake_shelf import SERVED
from tests.execution.tiny_model import write_tiny_model


class FakeDevices:
    """Serves what it is told to, or raises its fault."""

    def __init__(self) -> None:
        self.served: dict[ModelId, ServedModel] = {}
        self.fault: ExecutionError | None = None

    def models(self) -> tuple[ServedModel, ...]:
        return tuple(self.served.values())

    async def load(self, model_id: ModelId) -> ServedModel:
        if self.fault:
            raise self.fault
        self.served[model_id] = replace(SERVED, model_id=model_id)
        return self.served[model_id]

    async def unload(self, model_id: ModelId) -> None:
        if self.fault:
            raise self.fault
        del self.served[model_id]


@pytest.fixture
def model(tmp_path: Path) -> StoredModel:
    return ModelStore(tmp_path / "store").add_folder(write_tiny_model(tmp_path / "source"), "tiny")


@pytest.fixture
def devices() -> FakeDevices:
    return FakeDevices()


@pytest.fixture
def shelf(model: StoredModel, devices: FakeDevices) -> Shelf:
    root = model.folder.parent
    return Shelf(devices, ModelStore(root), Holds(root))


async def test_model_is_held_from_load_to_unload(shelf: Shelf, model: StoredModel) -> None:
    assert (await shelf.load("TINY")).model_id == model.model_id
    assert is_held(model.folder)
    await shelf.unload(model.model_id.hex()[:8])
    assert not is_held(model.folder)


async def test_what_the_start_loaded_is_held(shelf: Shelf, model: StoredModel, devices: FakeDevices) -> None:
    await devices.load(model.model_id)
    await shelf.hold_served()
    assert is_held(model.folder)
    devices.served.clear()  # the worker is being restarted
    await shelf.hold_served()
    assert is_held(model.folder)


async def test_model_is_held_once_when_the_daemon_looks_while_it_is_loaded(
    model: StoredModel, devices: FakeDevices
) -> None:
    entered, go = threading.Event(), threading.Event()

    inside: list[int] = []

    class SlowHolds(Holds):
        def take(self, models: Iterable[ModelId]) -> None:
            inside.append(len(inside))
            entered.set()
            assert go.wait(5)
            super().take(models)
            inside.pop()

    root = model.folder.parent
    shelf = Shelf(devices, ModelStore(root), SlowHolds(root))
    await devices.load(model.model_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shelf.hold_served)
        await trio.to_thread.run_sync(entered.wait)
        nursery.start_soon(shelf.load, "tiny")
        # The load looks its name up in a thread, and comes to the holds then.
        await wait_all_tasks_blocked(0.05)
        assert inside == [0]
        go.set()
    await shelf.unload("tiny")
    assert not is_held(model.folder)


async def test_unknown_names_are_answered_with_what_there_is(shelf: Shelf) -> None:
    with pytest.raises(ApiError, match="the store has tiny") as refused:
        await shelf.load("huge")
    assert refused.value.status == 404
    with pytest.raises(ApiError, match="this node serves nothing"):
        await shelf.unload("tiny")


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (ExecutionError("no room", code="memory"), 409, "model_refused"),
        (ExecutionError("jobs", code="model_busy"), 409, "model_busy"),
        (JobRefusedError("damaged", code="model_unknown"), 404, "model_not_found"),
        (WorkerDiedError("gone", code="worker_died"), 503, "worker_died"),
    ],
)
async def test_faults_of_the_device_become_answers_and_hold_nothing(
    shelf: Shelf, model: StoredModel, devices: FakeDevices, fault: ExecutionError, status: int, code: str
) -> None:
    devices.fault = fault
    with pytest.raises(ApiError) as refused:
        await shelf.load("tiny")
    assert (refused.value.status, refused.value.code) == (status, code)
    assert not is_held(model.folder)
