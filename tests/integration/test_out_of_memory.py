"""Three models on a device that holds two, bounded by the kernel: nothing ever runs out of memory.

Every job is drawn at random, many at once, some longer than fits. A refusal says what would fit, and that is then
taken.
"""

import random
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio

from node.config import WorkerSection
from node.errors import ExecutionError, JobRefusedError
from node.execution.interface import Piece, Prompt
from node.execution.memory_plan import FIXED_BYTES, plan_model, with_cpu_work
from node.execution.model_fit import PREFILL_TOKENS
from node.execution.pool import WorkerPool
from node.execution.shape import read_shape
from node.models.store import ModelStore
from protocol.task import GenerateInput, Sampling
from protocol.units import ModelId
from tests.execution.tiny_model import Sizes, write_tiny_model
from tests.integration.test_worker_pool import worker_pids
from tests.test_metrics import samples

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONTEXT_TOKENS: Final = 512
SLOTS: Final = 4
PERCENT: Final = 95
# So that the caches are what fills the budget, as on a real device, and not what torch itself takes.
SIZES: Final = Sizes(layers=4, heads=16, kv_heads=16, head_size=64)
AT_ONCE: Final = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("models")
    made = ModelStore(folder / "store")
    for seed, name in ((1, "one"), (2, "two"), (3, "three")):
        made.add_folder(write_tiny_model(folder / name, seed=seed, sizes=SIZES), name)
    return made


def memory_for(store: ModelStore, models_that_fit: int) -> int:
    """The least budget of which ``PERCENT`` holds so many models with all their slots."""
    model = store.find("one")
    shape = read_shape(model.folder)
    plan = plan_model(
        shape,
        model.parameters,
        dtype="fp32",
        slots=SLOTS,
        context_tokens=CONTEXT_TOKENS,
        prefill_tokens=PREFILL_TOKENS["cpu"],
    )
    plan = with_cpu_work(plan, shape, "fp32", decode_threads=0)
    return (FIXED_BYTES["cpu"] + models_that_fit * plan.total_bytes) * 100 // PERCENT + 100


@dataclass
class Mix:
    """A random job after the other, and what became of them."""

    pool: WorkerPool
    model_ids: list[ModelId]
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    numbers: int = 0
    ended: trio.Event = field(default_factory=trio.Event)
    """The next job's end."""

    async def run(self, jobs: int) -> None:
        limiter = trio.CapacityLimiter(AT_ONCE)

        async def one() -> None:
            async with limiter:
                await self._job()

        async with trio.open_nursery() as nursery:
            for _ in range(jobs):
                nursery.start_soon(one)

    async def _job(self) -> None:
        rng = self.rng
        model_id, tokens_in = rng.choice(self.model_ids), rng.choice((8, 60, 300, 500, 511, 512, 900))
        tokens_out = rng.choice((1, 8, 40, 200, 512, 2000))
        self.counts["jobs"] += 1
        try:
            await self._answer(model_id, tokens_in, tokens_out)
            return
        except JobRefusedError as refused:
            self.counts["refused"] += 1
            offer = refused
        if offer.tokens_out_max is not None:
            await self._answer(model_id, tokens_in, offer.tokens_out_max)
        elif offer.tokens_in_max is not None:
            await self._answer(model_id, offer.tokens_in_max, tokens_out)
        else:
            # Neither fits by itself: the longest prompt that leaves room for one token is asked for first.
            assert tokens_in >= CONTEXT_TOKENS <= tokens_out
            with pytest.raises(JobRefusedError) as again:
                await self._prepare_once(model_id, tokens_in, 1)
            assert again.value.tokens_in_max == CONTEXT_TOKENS - 1
            await self._answer(model_id, again.value.tokens_in_max, 1)
        self.counts["counter-offers taken"] += 1

    async def _answer(self, model_id: ModelId, tokens_in: int, tokens_out: int) -> None:
        """Run one job to its end; one that finds jobs in its model's way waits for one's end."""
        while True:
            try:
                prompt = await self._prepare_once(model_id, tokens_in, tokens_out)
                break
            except ExecutionError as exc:
                if exc.code != "model_busy":
                    raise
                self.counts["waited for a model"] += 1
                await self.ended.wait()
        sink, pieces = trio.open_memory_channel[Piece](tokens_out + 1)
        with sink, pieces:
            await self.pool.generate(prompt, Sampling(), tokens_out_max=tokens_out, sink=sink)
        self.counts["answers"] += 1
        self.ended.set()
        self.ended = trio.Event()

    async def _prepare_once(self, model_id: ModelId, tokens_in: int, tokens_out: int) -> Prompt:
        self.numbers += 1
        prompt = GenerateInput(prompt="x" * tokens_in)
        return await self.pool.prepare(f"job {self.numbers}", model_id, prompt, tokens_out)


async def run_mix(store: ModelStore, jobs: int, *, seed: int) -> tuple[Counter[str], int, int]:
    """Return what happened, the worker's peak of resident memory and what it was allowed."""
    memory_bytes_max = memory_for(store, 2)
    config = WorkerSection(
        devices="cpu",
        dtype="fp32",
        threads=1,
        slots=SLOTS,
        context_tokens_max=CONTEXT_TOKENS,
        memory_percent=PERCENT,
        memory_bytes_max=memory_bytes_max,
    )
    pool = WorkerPool(config, store, ("*",))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert [(model.slots, model.context_tokens) for model in pool.models()] == [(SLOTS, CONTEXT_TOKENS)] * 3
        assert sum(model.is_loaded for model in pool.models()) == 2
        mix = Mix(pool=pool, model_ids=[model.model_id for model in store.models()], rng=random.Random(seed))
        await mix.run(jobs)
        (pid,) = worker_pids()
        assert resource.prlimit(pid, resource.RLIMIT_DATA)[0] == memory_bytes_max
        peak = status_bytes(pid, "VmHWM") - status_bytes(pid, "RssFile")
        nursery.cancel_scope.cancel()
    assert "souk_worker_restarts_total" not in {name for name, _ in samples(pool.metrics)}
    return mix.counts, peak, memory_bytes_max


def status_bytes(pid: int, field_name: str) -> int:
    line = Path(f"/proc/{pid}/status").read_text().split(f"{field_name}:")[1]
    return int(line.split()[0]) * 1024


async def check(store: ModelStore, jobs: int, *, seed: int, figure: Callable[[str, str], None]) -> None:
    counts, peak, allowed = await run_mix(store, jobs, seed=seed)
    figure(
        f"out of memory in {jobs} random job mixes at {PERCENT} % of {allowed >> 20} MB",
        f"0; {counts['refused']} refused, {counts['counter-offers taken']} counter-offers taken; "
        f"peak {peak >> 20} MB beside mapped files; {counts['waited for a model']} waits for another model's jobs",
    )
    assert counts["jobs"] == counts["answers"] == jobs
    assert counts["refused"] == counts["counter-offers taken"] > 0
    assert peak <= allowed


async def test_no_job_runs_out_of_memory_and_each_refusal_offers_what_is_taken(
    store: ModelStore, figure: Callable[[str, str], None]
) -> None:
    await check(store, 16, seed=1, figure=figure)


@pytest.mark.deep
async def test_no_job_of_two_hundred_runs_out_of_memory(
    store: ModelStore, figure: Callable[[str, str], None]
) -> None:
    await check(store, 200, seed=2, figure=figure)
