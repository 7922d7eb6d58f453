import os
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from node.config import WorkerSection
from node.execution.device_worker import Changes, DeviceWorker, _Candidate
from node.execution.devices import CpuFacts, DeviceChoice
from node.execution.loading import DeviceSetup
from node.execution.watchdog import resident_bytes
from node.execution.worker_rules import WorkerRules
from node.metrics import Metrics


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
    setup = DeviceSetup(
        choice=DeviceChoice(kind="cpu"),
        config=WorkerSection(devices="cpu"),
        threads=1,
        models=(),
        nvml=(),
        environment={},
        metrics=Metrics(),
        rules=WorkerRules(),
    )
    worker = DeviceWorker(setup, Changes())
    assert worker._memory_bytes_max() == 1 << 20
    process: Any = SimpleNamespace(pid=os.getpid())  # Any: stands for a WorkerProcess
    worker._serving = _Candidate(process)
    held = resident_bytes(os.getpid())
    assert held is not None
    assert worker._memory_bytes_max() >= (1 << 20) + held // 2
