"""Real worker processes with a tiny model: streams, slots, refusals, deaths, and what is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.execution.interface import Piece, Prompt
from node.execution.pool import WorkerPool
from node.execution.worker_rules import WorkerRules
from node.home import Home
from node.models.store import ModelStore, StoredModel
from protocol.task import ChatMessage, GenerateInput, Sampling
from protocol.units import ModelId
from tests.execution.tiny_model import write_tiny_model
from tests.test_metrics import samples

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CONFIG = WorkerSection(devices="cpu", dtype="fp32", threads=1, slots=4, context_tokens_max=256)
StartPool = Callable[..., Awaitable[WorkerPool]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("models")
    made = ModelStore(folder / "store")
    for seed, name in ((1, "tiny"), (2, "other")):
        made.add_folder(write_tiny_model(folder / name, seed=seed), name)
    return made


@pytest.fixture(scope="session")
def tiny(store: ModelStore) -> StoredModel:
    return store.find("tiny")


@pytest.fixture
async def start(store: ModelStore, nursery: trio.Nursery) -> AsyncIterator[StartPool]:
    """Start a pool; it is stopped when the test ends, and must leave no process."""
    pids: list[int] = []

    async def start_pool(
        *, config: WorkerSection = CONFIG, serve: tuple[str, ...] = ("tiny",), silence_s_max: float = 60.0
    ) -> WorkerPool:
        pool = WorkerPool(config, store, serve, rules=WorkerRules(silence_s_max=silence_s_max))
        with trio.fail_after(60):
            await nursery.start(pool.run)
        pids.extend(worker_pids())
        return pool

    yield start_pool
    nursery.cancel_scope.cancel()


def worker_pids() -> list[int]:
    """The worker processes that this process has started and that live; not what stands around them."""
    found = psutil.Process().children(recursive=True)
    return [it.pid for it in found if it.name() != "bwrap" and "engine.worker_main" in " ".join(it.cmdline())]


def say(text: str, **fields: object) -> GenerateInput:
    return GenerateInput(messages=(ChatMessage(role="user", content=text),), **fields)


async def answer(
    pool: WorkerPool, key: str, model_id: ModelId, task_input: GenerateInput, *, out: int = 24, seed: int = 0
) -> list[Piece]:
    prompt = await pool.prepare(key, model_id, task_input, out)
    sink, pieces = trio.open_memory_channel[Piece](out + 1)
    sampling = Sampling(temperature_milli=800 * (seed > 0), top_p_milli=950, seed=seed)
    with sink, pieces:
        with trio.fail_after(60):
            await pool.generate(prompt, sampling, tokens_out_max=out, sink=sink)
        sink.close()
        return [piece async for piece in pieces]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_pool_tells_what_it_serves_and_measures_it_again_unless_jobs_are_there(
    start: StartPool, tiny: StoredModel
) -> None:
    pool = await start()
    (model,) = pool.models()
    assert (model.model_id, model.name, model.task) == (tiny.model_id, "tiny", "generate")
    assert (model.dtype, model.device, model.slots, model.context_tokens) == ("fp32", "cpu", 4, 256)
    assert model.tokens_per_s_milli > 0
    assert model.profile.startswith("torch ") and "; fp32; sdpa" in model.profile
    (device,) = pool.devices()
    assert device.kind == "cpu" and device.matmul_gflops and device.read_mb_per_s
    found = await pool.bench("tiny", "cpu", duration_s=0.4)
    assert found.model == model and len(found.runs) >= 1 and not found.was_cut
    # A machine at work is slower, but of the same order.
    ratio = (found.measured.tokens_per_s_milli or 0) / model.tokens_per_s_milli
    assert 0.01 < ratio < 100 and found.measured.matmul_gflops and found.measured.read_mb_per_s
    prompt = await pool.prepare("k", tiny.model_id, say("a"), 8)
    with pytest.raises(ExecutionError) as refused:
        await pool.bench(tiny.model_id.hex()[:8], None, duration_s=0.0)
    assert refused.value.code == "device_busy"
    await pool.release(prompt)
    with pytest.raises(JobRefusedError, match="it serves tiny on cpu"):
        await pool.bench("tiny", "cuda:0", duration_s=0.0)


async def test_twelve_streams_on_four_slots_answer_as_if_alone(start: StartPool, tiny: StoredModel) -> None:
    pool = await start()
    alone = [await answer(pool, f"a{i}", tiny.model_id, say("x" * i), seed=i) for i in range(12)]
    together: dict[int, list[Piece]] = {}

    async def ask(i: int) -> None:
        together[i] = await answer(pool, f"b{i}", tiny.model_id, say("x" * i), seed=i)

    async with trio.open_nursery() as asking:
        for i in range(12):
            asking.start_soon(ask, i)
    for i in range(12):
        assert [piece.tokens for piece in together[i]] == [piece.tokens for piece in alone[i]]
        assert text_of(together[i]) == text_of(alone[i])
        assert [piece.finish is not None for piece in together[i]] == [False] * (len(together[i]) - 1) + [True]
    assert len({text_of(pieces) for pieces in alone}) > 6


async def test_each_of_two_models_answers_for_itself(start: StartPool, store: ModelStore) -> None:
    pool = await start(serve=("*",))
    answers = {
        name: text_of(await answer(pool, name, store.find(name).model_id, say("hello")))
        for name in ("tiny", "other")
    }
    assert answers["tiny"] != answers["other"]
    lone = await start(serve=("other",))
    assert text_of(await answer(lone, "o", store.find("other").model_id, say("hello"))) == answers["other"]


async def test_stop_string_ends_the_answer_before_it(start: StartPool, tiny: StoredModel) -> None:
    pool = await start()
    whole = text_of(await answer(pool, "a", tiny.model_id, say("hello"), seed=3))
    stop = whole[5:7]
    pieces = await answer(pool, "b", tiny.model_id, say("hello", stop=(stop,)), seed=3)
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize("how", ["cancelled", "reader gone", "released"])
async def test_slot_is_free_for_the_next_when_a_job_is(start: StartPool, tiny: StoredModel, how: str) -> None:
    pool = await start(
        config=WorkerSection(devices="cpu", dtype="fp32", threads=1, slots=1, context_tokens_max=256)
    )
    prompt = await pool.prepare("long", tiny.model_id, GenerateInput(prompt="ab"), 250)
    sink, pieces = trio.open_memory_channel[Piece](251)
    if how == "released":
        await pool.release(prompt)
        await pool.release(prompt)
        with pytest.raises(ExecutionError, match="prepare it again"):
            await pool.generate(prompt, Sampling(), tokens_out_max=250, sink=sink)
    elif how == "cancelled":
        async with trio.open_nursery() as running:
            running.start_soon(lambda: pool.generate(prompt, Sampling(), tokens_out_max=250, sink=sink))
            await pieces.receive()
            running.cancel_scope.cancel()
    else:
        pieces.close()
        with pytest.raises(ExecutionError, match="nobody reads"):
            await pool.generate(prompt, Sampling(), tokens_out_max=250, sink=sink)
    got = await answer(pool, "next", tiny.model_id, GenerateInput(prompt="ab"), out=3)
    assert sum(len(piece.tokens) for piece in got) == 3
    assert pool._workers[0].process.jobs == 0


async def test_job_is_refused_with_its_code_when_it_can_never_run(start: StartPool, tiny: StoredModel) -> None:
    pool = await start()
    refusals = []
    for model_id, task_input, out in (
        (ModelId(b"?" * 32), say("a"), 8),
        (tiny.model_id, say("x" * 300), 8),
        (tiny.model_id, GenerateInput(prompt="x" * 200), 57),
        (tiny.model_id, GenerateInput(messages=(*say("a").messages, ChatMessage(role="system", content="b"))), 8),
    ):
        with pytest.raises(JobRefusedError) as refused:
            await pool.prepare("k", model_id, task_input, out)
        refusals.append((refused.value.code, str(refused.value)))
    assert [code for code, _ in refusals] == ["model_unknown", "context_exceeded", "context_exceeded", "input"]
    assert "it serves tiny" in refusals[0][1]
    assert refusals[2][1] == (
        "the prompt has 200 tokens and the answer may have 57: together 257, "
        "this model is served with a context of 256"
    )
    assert len(await answer(pool, "k", tiny.model_id, GenerateInput(prompt="x" * 200), out=56)) > 0


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_jobs_fail_and_another_worker_serves_when_one_is_killed_or_stuck(
    start: StartPool, tiny: StoredModel, signal_number: signal.Signals
) -> None:
    pool = await start(silence_s_max=2.0)
    before = await answer(pool, "before", tiny.model_id, say("hello"))
    prompt = await pool.prepare("running", tiny.model_id, GenerateInput(prompt="a"), 200)
    held = await pool.prepare("held", tiny.model_id, GenerateInput(prompt="a"), 8)
    sink, _pieces = trio.open_memory_channel[Piece](201)
    (pid,) = worker_pids()
    # Stopped before the job starts: a fast machine could finish it before the signal.
    os.kill(pid, signal.SIGSTOP)
    with trio.fail_after(20):
        async with trio.open_nursery() as running:
            running.start_soon(expect_death, pool, prompt, sink)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(pid, signal_number)
            if signal_number == signal.SIGSEGV:
                os.kill(pid, signal.SIGCONT)
    assert pool.models() == ()
    code = "worker_hung" if signal_number == signal.SIGSTOP else "worker_died"
    assert samples(pool.metrics)["souk_worker_restarts_total", ("cpu", code)] == 1
    with pytest.raises(WorkerDiedError):
        await pool.generate(held, Sampling(), tokens_out_max=8, sink=sink)
    with pytest.raises(WorkerDiedError, match="being restarted"):
        await pool.prepare("now", tiny.model_id, say("a"), 8)
    with trio.fail_after(30):
        while not pool.models():
            await pool.wait_change()
    assert await answer(pool, "after", tiny.model_id, say("hello")) == before
    assert worker_pids() != [pid]


async def expect_death(pool: WorkerPool, prompt: Prompt, sink: trio.MemorySendChannel[Piece]) -> None:
    with pytest.raises(WorkerDiedError):
        await pool.generate(prompt, Sampling(), tokens_out_max=200, sink=sink)


async def test_no_process_is_left_when_a_busy_pool_is_cancelled(store: ModelStore, tiny: StoredModel) -> None:
    pool = WorkerPool(CONFIG, store, ("tiny",))
    sink, pieces = trio.open_memory_channel[Piece](201)
    before = set(psutil.Process().children(recursive=True))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert len(worker_pids()) == 1
        started = set(psutil.Process().children(recursive=True)) - before
        prompt = await pool.prepare("k", tiny.model_id, GenerateInput(prompt="a"), 200)
        nursery.start_soon(lambda: pool.generate(prompt, Sampling(), tokens_out_max=200, sink=sink))
        await pieces.receive()
        nursery.cancel_scope.cancel()
    # One whose parent has ended would be no descendant any more.
    assert started and not any(it.is_running() for it in started)


async def test_pool_serves_nothing_and_starts_nothing_when_it_is_a_clients(start: StartPool) -> None:
    pool = await start(serve=())
    assert pool.models() == () and pool.devices() == ()
    assert worker_pids() == []
    with pytest.raises(JobRefusedError, match="it serves nothing"):
        await pool.prepare("k", ModelId(b"?" * 32), say("a"), 8)


async def test_model_that_cannot_be_loaded_leaves_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ModelStore(tmp_path / "store")
    broken = write_tiny_model(tmp_path / "broken", seed=5)
    (broken / "tokenizer.json").write_text("{}")
    store.add_folder(broken, "broken")
    gpt = write_tiny_model(tmp_path / "gpt")
    (gpt / "config.json").write_text('{"model_type": "gpt2", "max_position_embeddings": 64}')
    store.add_folder(gpt, "gpt")
    good = store.add_folder(write_tiny_model(tmp_path / "good", seed=6), "good")
    pool = WorkerPool(CONFIG, store, ("*", "absent"))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert [model.name for model in pool.models()] == ["good"]
        assert await answer(pool, "k", good.model_id, say("hello"))
        nursery.cancel_scope.cancel()
    left_out = {record.__dict__["model"] for record in caplog.records if record.message == "model left out"}
    assert left_out == {"broken", "gpt", "absent"}


async def test_node_without_a_compiler_decodes_by_torch_and_says_why(
    store: ModelStore,
    tiny: StoredModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    config = msgspec.structs.replace(CONFIG, dtype="bf16", compiled_decode=True)
    pool = WorkerPool(config, store, ("tiny",), home=Home(tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert [model.profile.endswith("bf16; sdpa") for model in pool.models()] == [True]
        nursery.cancel_scope.cancel()
    causes = [it.__dict__["cause"] for it in caplog.records if it.message == "decoding is not compiled"]
    assert len(causes) == 1 and "CC" in causes[0] and "worker.compiled_decode" in causes[0]


async def test_device_that_torch_does_not_see_serves_nothing_and_says_why(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    pool = WorkerPool(WorkerSection(devices=("cuda:7",)), store, ("tiny",))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        assert pool.models() == ()
        nursery.cancel_scope.cancel()
    assert any(record.message == "worker died" for record in caplog.records)


PARENT = """
import psutil, sys, trio
from pathlib import Path
from node.config import WorkerSection
from node.execution.pool import WorkerPool
from node.execution.worker_rules import WorkerRules
from node.models.store import ModelStore

async def main():
    pool = WorkerPool(WorkerSection(devices="cpu", threads=1), ModelStore(Path(sys.argv[1])), ("tiny",))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        print(*(it.pid for it in psutil.Process().children(recursive=True)), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_worker_ends_when_its_daemon_is_killed(
    store: ModelStore, tiny: StoredModel, bubblewrap: str
) -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220  trio's own kills the child when this scope ends
        [sys.executable, "-c", PARENT, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, ExitStack() as opened, trio.fail_after(60):
        line = await trio.to_thread.run_sync(parent.stdout.readline)
        # The worker, and bubblewrap's two processes where it is used.
        found = [os.pidfd_open(int(pid)) for pid in line.split()]
        assert len(found) == (3 if bubblewrap else 1)
        for descriptor in found:
            opened.callback(os.close, descriptor)
        parent.kill()
        with trio.fail_after(2):
            for descriptor in found:
                await trio.lowlevel.wait_readable(descriptor)
