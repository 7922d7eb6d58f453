"""A device whose workers fail one after the other: typed failures, quarantine, a probe, and serving again."""

import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.errors import ExecutionError, WorkerDiedError
from node.execution.pool import WorkerPool
from node.execution.quarantine import QuarantineRules
from node.execution.worker_rules import WorkerRules
from node.models.store import ModelStore
from protocol.task import GenerateInput
from tests.execution.tiny_model import write_tiny_model
from tests.integration.test_worker_pool import answer
from tests.test_metrics import samples

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# A real worker whose device fails at a job's first pass, as a card does after an illegal access; measuring works.
BROKEN = """
import torch
from node.execution.engine import worker_main
from node.execution.engine.served import ServedModel

def step(self):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

ServedModel.step = step
worker_main.main()
"""

# Gives each token five times; what it was asked for is counted by the daemon.
LAVISH = """
from msgspec.structs import replace
from node.execution.engine import worker_main
from node.execution.engine.served import ServedModel

step = ServedModel.step
ServedModel.step = lambda self: [replace(piece, tokens=piece.tokens * 5) for piece in step(self)]
worker_main.main()
"""


async def test_job_fails_here_when_its_worker_gives_more_than_was_asked_for(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = store.add_folder(write_tiny_model(tmp_path / "tiny"), "tiny")
    config = WorkerSection(devices="cpu", dtype="fp32", threads=1, slots=1, context_tokens_max=128, jail="off")
    rules = WorkerRules(command=(sys.executable, "-P", "-c", LAVISH))
    pool = WorkerPool(config, store, ("tiny",), rules=rules)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        with pytest.raises(ExecutionError, match="not asked for") as failed:
            await answer(pool, "job", model.model_id, GenerateInput(prompt="ab"))
        assert failed.value.code == "worker_fault"
        nursery.cancel_scope.cancel()


async def test_device_is_quarantined_and_probed_when_its_workers_fail_again_and_again(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    model = store.add_folder(write_tiny_model(tmp_path / "tiny"), "tiny")
    # torch is imported before the jail could be entered: only a test's worker does that.
    config = WorkerSection(devices="cpu", dtype="fp32", threads=1, slots=1, context_tokens_max=128, jail="off")
    rules = WorkerRules(
        quarantine=QuarantineRules(deaths_max=2, restart_s=(0.0,), pauses_s=(0.5,)),
        command=(sys.executable, "-P", "-c", BROKEN),
    )
    pool = WorkerPool(config, store, ("tiny",), rules=rules)
    lives = []
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        for number in range(2):
            with trio.fail_after(60):
                while not pool.models():
                    await pool.wait_change()
            with pytest.raises(WorkerDiedError, match="illegal memory access") as died:
                await answer(pool, str(number), model.model_id, GenerateInput(prompt="ab"))
            assert died.value.code == "device_fault"
            # At once, before the process has ended: nothing is served, nothing is advertised.
            assert pool.models() == ()
            await trio.testing.wait_all_tasks_blocked()
            lives.append(pool.workers()[0].life)
        (state,) = pool.workers()
        assert lives == ["restarting", "quarantined"]
        assert state.deaths == 2 and "illegal memory access" in (state.cause or "")
        assert state.probe_in_s is not None and state.probe_in_s <= 0.5
        with pytest.raises(WorkerDiedError, match="being restarted"):
            await answer(pool, "meanwhile", model.model_id, GenerateInput(prompt="ab"))
        with trio.fail_after(60):
            while not pool.models():
                await pool.wait_change()
        assert pool.workers()[0].life == "serving"
        nursery.cancel_scope.cancel()
    assert samples(pool.metrics)["souk_worker_restarts_total", ("cpu", "device_fault")] == 2
