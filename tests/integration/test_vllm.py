"""vLLM's server behind a real worker: a stand-in that speaks its HTTP; the real one is tried by hand."""

import itertools
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
import trio

import tests.execution.fake_vllm
from node.config import WorkerSection
from node.errors import JobRefusedError, WorkerDiedError
from node.execution.interface import Piece
from node.execution.pool import WorkerPool
from node.models.store import ModelStore
from protocol.profile import read_profile
from protocol.task import GenerateInput, Sampling
from tests.execution.tiny_model import write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

INPUT = GenerateInput(prompt="a")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    folder = tmp_path_factory.mktemp("models")
    made = ModelStore(folder / "store")
    made.add_folder(write_tiny_model(folder / "tiny"), "tiny")
    return made


@pytest.fixture
def config(tmp_path: Path) -> WorkerSection:
    """A worker whose vLLM is the stand-in, and whose temporary folder is this test's."""
    python = tmp_path / "python"
    stand_in = tests.execution.fake_vllm.__file__
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    python.chmod(0o755)
    return WorkerSection(
        devices="cpu", dtype="fp32", threads=1, slots=4, context_tokens_max=256, vllm_python=str(python)
    )


@pytest.fixture
async def pool(
    config: WorkerSection,
    store: ModelStore,
    nursery: trio.Nursery,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WorkerPool]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = WorkerPool(config, store, ("tiny",))
    with trio.fail_after(60):
        await nursery.start(made.run)
    yield made
    nursery.cancel_scope.cancel()


def of_the_worker() -> list[psutil.Process]:
    """The worker, the keeper and the server, in this order."""
    found = {
        name: process
        for process in psutil.Process().children(recursive=True)
        for name in ("worker_main", "vllm_keeper", "fake_vllm.py")
        if any(name in word for word in process.cmdline()[:5])
    }
    return [found["worker_main"], found["vllm_keeper"], found["fake_vllm.py"]]


def folders(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("souk-vllm-*"))


async def wait_gone(processes: list[psutil.Process]) -> None:
    _, alive = await trio.to_thread.run_sync(psutil.wait_procs, processes, 10)
    assert not alive


async def test_jobs_get_the_servers_tokens_and_a_profile_that_says_so(pool: WorkerPool) -> None:
    (model,) = pool.models()
    profile = read_profile(model.profile)
    assert profile is not None
    assert (profile.runtime, profile.version, profile.sampler, profile.dtype) == ("vllm", "0.32.0", "own", "fp32")
    prompt = await pool.prepare("job", model.model_id, INPUT, 12)
    sink, pieces = trio.open_memory_channel[Piece](12)
    with sink, pieces:
        await pool.generate(prompt, Sampling(), tokens_out_max=12, sink=sink)
        sink.close()
        found = [piece async for piece in pieces]
    tokens = [token for piece in found for token in piece.tokens]
    assert len(tokens) == 12 and found[-1].finish == "length"
    assert [b - a for a, b in itertools.pairwise(tokens)] == [1] * 11
    (worker,) = pool.workers()
    assert worker.jail is not None and "vLLM" in worker.jail
    with pytest.raises(JobRefusedError, match=r"vllm 0\.32\.0"):
        await pool.score(model.model_id, INPUT, (1, 2), Sampling())
    left = of_the_worker()
    await pool.unload(model.model_id)
    await wait_gone(left[1:])
    assert left[0].is_running()


@pytest.mark.parametrize("victim", [0, 2])
async def test_nothing_is_left_and_another_serves_when_worker_or_server_is_killed(
    pool: WorkerPool, tmp_path: Path, victim: int
) -> None:
    (model,) = pool.models()
    held = await pool.prepare("held", model.model_id, INPUT, 8)
    processes = of_the_worker()
    sink, _pieces = trio.open_memory_channel[Piece](8)
    with trio.fail_after(30):
        processes[victim].send_signal(signal.SIGKILL)
        while pool.models():
            await pool.wait_change()
        with pytest.raises(WorkerDiedError) as raised:
            await pool.generate(held, Sampling(), tokens_out_max=8, sink=sink)
        assert raised.value.code == "worker_died"
        await wait_gone(processes)
        while not pool.models():
            await pool.wait_change()
    assert len(folders(tmp_path)) == 1


async def test_worker_refuses_when_it_must_be_jailed_and_cannot(config: WorkerSection, store: ModelStore) -> None:
    required = WorkerPool(msgspec.structs.replace(config, jail="required"), store, ("tiny",))
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            await nursery.start(required.run)
        (worker,) = required.workers()
        assert worker.cause is not None and 'worker.jail = "auto"' in worker.cause
        nursery.cancel_scope.cancel()
