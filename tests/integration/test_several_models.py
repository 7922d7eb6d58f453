"""Several models on one device that holds only one of them at a time: loaded on demand, unloaded by age."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from node.config import WorkerSection
from node.errors import ExecutionError, JobRefusedError
from node.execution.devices import CpuFacts
from node.execution.gpu_readings import GpuReading
from node.execution.inventory import Inventory
from node.execution.memory_plan import FIXED_BYTES, MemoryPlan, plan_model, with_cpu_work
from node.execution.model_fit import PREFILL_TOKENS
from node.execution.pool import WorkerPool
from node.execution.shape import read_shape
from node.execution.worker_rules import WorkerRules
from node.models.store import ModelStore
from protocol.task import GenerateInput
from protocol.units import ModelId
from tests.execution.tiny_model import write_tiny_model
from tests.integration.test_worker_pool import answer, text_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONTEXT_TOKENS = 128
StartPool = Callable[..., Awaitable[WorkerPool]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("models")
    made = ModelStore(folder / "store")
    for seed, name in ((1, "one"), (2, "two"), (3, "three")):
        made.add_folder(write_tiny_model(folder / name, seed=seed), name)
    return made


def plan_of(store: ModelStore, name: str) -> MemoryPlan:
    """One slot of the model ``name``."""
    model = store.find(name)
    shape = read_shape(model.folder)
    plan = plan_model(
        shape,
        model.parameters,
        dtype="fp32",
        slots=1,
        context_tokens=CONTEXT_TOKENS,
        prefill_tokens=PREFILL_TOKENS["cpu"],
    )
    return with_cpu_work(plan, shape, "fp32", decode_threads=0)


@pytest.fixture
async def start(store: ModelStore, nursery: trio.Nursery) -> AsyncIterator[StartPool]:
    async def start_pool(
        models_that_fit: int, *, pinned: tuple[str, ...] = (), inventory: Inventory | None = None
    ) -> WorkerPool:
        memory_bytes_max = FIXED_BYTES["cpu"] + models_that_fit * plan_of(store, "one").total_bytes
        config = WorkerSection(
            devices="cpu",
            dtype="fp32",
            threads=1,
            slots=1,
            context_tokens_max=CONTEXT_TOKENS,
            memory_percent=100,
            memory_bytes_max=memory_bytes_max,
            pinned=pinned,
        )
        rules = (
            WorkerRules()
            if inventory is None
            else WorkerRules(look_s=0.01, memory_step_bytes=0, inventory=inventory)
        )
        pool = WorkerPool(config, store, ("*",), rules=rules)
        with trio.fail_after(60):
            await nursery.start(pool.run)
        return pool

    yield start_pool
    nursery.cancel_scope.cancel()


class Machine:
    """What this machine would tell, were its memory as the test says; ``free`` is for models."""

    def __init__(self) -> None:
        self.free = 1 << 40
        self.cards: list[GpuReading] = []

    def read_memory(self) -> CpuFacts:
        return CpuFacts(name="cpu", memory_total_bytes=1 << 40, memory_free_bytes=FIXED_BYTES["cpu"] + self.free)

    def inventory(self) -> Inventory:
        # What the worker holds is part of what is free for it.
        return Inventory(lambda: self.cards, self.read_memory, lambda _pids: 0)


async def until(pool: WorkerPool, condition: Callable[[], bool]) -> None:
    with trio.fail_after(12):
        while not condition():
            await pool.wait_change()


def loaded(pool: WorkerPool) -> set[str]:
    return {model.name for model in pool.models() if model.is_loaded}


async def test_model_is_loaded_on_demand_and_the_longest_unused_leaves(
    start: StartPool, store: ModelStore
) -> None:
    pool = await start(2)
    assert {model.name for model in pool.models()} == {"one", "two", "three"}
    assert len(loaded(pool)) == 2
    ids = {name: store.find(name).model_id for name in ("one", "two", "three")}
    said: dict[str, set[str]] = {name: set() for name in ids}
    for turn, name in enumerate(("one", "two", "three", "one", "three", "two")):
        said[name].add(text_of(await answer(pool, f"{turn}", ids[name], GenerateInput(prompt="ab"))))
        assert name in loaded(pool) and len(loaded(pool)) == 2
    assert loaded(pool) == {"two", "three"}
    # Never another model than asked: each said one thing, whatever lay there before, and no two the same.
    assert [len(texts) for texts in said.values()] == [1, 1, 1]
    assert len(set.union(*said.values())) == 3
    # What was promised stands beside what was got.
    assert all(model.tokens_per_s_milli and model.delivered_tokens_per_s_milli for model in pool.models())


async def test_model_with_a_job_or_a_pin_is_never_unloaded(start: StartPool, store: ModelStore) -> None:
    pool = await start(2, pinned=("three",))
    one, two = store.find("one").model_id, store.find("two").model_id
    assert "three" in loaded(pool)
    held = await pool.prepare("held", one, GenerateInput(prompt="ab"), 8)
    with pytest.raises(ExecutionError) as refused:
        await pool.prepare("k", two, GenerateInput(prompt="ab"), 8)
    assert refused.value.code == "model_busy"
    with pytest.raises(ExecutionError) as refused:
        await pool.unload(one)
    assert refused.value.code == "model_busy"
    await pool.release(held)
    await answer(pool, "k", two, GenerateInput(prompt="ab"))
    assert loaded(pool) == {"two", "three"}


async def test_operator_unloads_and_loads_a_model_by_its_id(start: StartPool, store: ModelStore) -> None:
    pool = await start(1)
    one = store.find("one").model_id
    await pool.unload(one)
    assert {model.name for model in pool.models()} == {"two", "three"}
    with pytest.raises(JobRefusedError, match="it serves three, two"):
        await pool.prepare("k", one, GenerateInput(prompt="ab"), 8)
    assert (await pool.load(one)).name == "one"
    assert loaded(pool) == {"one"}
    assert text_of(await answer(pool, "k", one, GenerateInput(prompt="ab")))
    for ask in (pool.load, pool.unload):
        with pytest.raises(JobRefusedError) as refused:
            await ask(ModelId(b"?" * 32))
        assert refused.value.code == "model_unknown"


async def test_load_whose_caller_gave_up_is_in_the_books_all_the_same(start: StartPool, store: ModelStore) -> None:
    pool = await start(1)
    (before,) = loaded(pool)
    wanted = next(name for name in ("one", "two", "three") if name != before)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.load, store.find(wanted).model_id)
            while before in loaded(pool):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert loaded(pool) in (set(), {wanted})
    assert text_of(await answer(pool, "k", store.find(before).model_id, GenerateInput(prompt="ab")))
    assert loaded(pool) == {before}


async def test_models_make_room_for_other_programs_and_come_back_after_them(
    start: StartPool, store: ModelStore
) -> None:
    machine, one = Machine(), plan_of(store, "one")
    pool = await start(2, inventory=machine.inventory())
    first, second = sorted(loaded(pool))
    await answer(pool, "k", store.find(second).model_id, GenerateInput(prompt="ab"))
    machine.free = one.total_bytes
    with trio.fail_after(12):
        while first in loaded(pool):
            await trio.lowlevel.checkpoint()
    # Both others could still be loaded in its place, with what a job takes told before.
    assert loaded(pool) == {second} and {model.lacks for model in pool.models()} == {None}
    assert all(model.job_bytes(CONTEXT_TOKENS) == one.total_bytes for model in pool.models())
    machine.free = one.total_bytes - one.cache_bytes // 4
    await until(pool, lambda: not loaded(pool) and all(model.is_context_cut for model in pool.models()))
    limit = CONTEXT_TOKENS * 3 // 4
    assert {model.context_tokens for model in pool.models()} == {limit}
    with pytest.raises(JobRefusedError) as refused:
        await pool.prepare("k", store.find(first).model_id, GenerateInput(prompt="ab"), limit)
    assert refused.value.tokens_out_max is not None
    fits = refused.value.tokens_out_max
    held = await pool.prepare("k", store.find(first).model_id, GenerateInput(prompt="ab"), fits)
    await pool.release(held)
    machine.free = 0
    await until(pool, lambda: {model.lacks for model in pool.models()} == {"memory"})
    with pytest.raises(ExecutionError) as full:
        await pool.prepare("k", store.find(first).model_id, GenerateInput(prompt="ab"), 8)
    assert full.value.code == "memory"
    machine.free = 1 << 40
    await until(pool, lambda: {model.lacks for model in pool.models()} == {None})
    assert text_of(await answer(pool, "k", store.find(first).model_id, GenerateInput(prompt="ab")))


async def test_device_that_vanishes_fails_its_jobs_and_one_that_appears_is_served(
    store: ModelStore, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = Machine()
    unknown = dict.fromkeys(
        ("utilization_ratio", "memory_used_bytes", "memory_total_bytes", "temperature_celsius", "power_watts")
    )
    card = GpuReading(index=0, name="card", uuid="GPU-1", **unknown)  # type: ignore[arg-type]  # all None
    # Nothing here can run on a card: what counts is who is started, and who is ended.
    rules = WorkerRules(look_s=0.01, inventory=machine.inventory(), command=("false",))
    pool = WorkerPool(WorkerSection(), store, ("*",), rules=rules)
    with trio.fail_after(60):
        await nursery.start(pool.run)
        assert [worker.device for worker in pool.workers()] == ["cpu"]
        machine.cards.append(card)
        while len(pool.workers()) == 1:
            await trio.lowlevel.checkpoint()
        assert [worker.device for worker in pool.workers()] == ["cpu", "cuda:0"]
        machine.cards.clear()
        while pool.workers()[1].life != "lost":
            await trio.lowlevel.checkpoint()
        assert pool.workers()[1].cause == "the driver lists this device no more"
        machine.cards.append(card)
        while pool.workers()[1].life == "lost":
            await trio.lowlevel.checkpoint()
        assert len(pool.workers()) == 2
    nursery.cancel_scope.cancel()
