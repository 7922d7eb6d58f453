import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk

DEVICE = {
    "kind": "cpu",
    "index": 0,
    "name": "a processor",
    "memory_free_bytes": 1 << 30,
    "memory_total_bytes": 2 << 30,
}
JOB = {
    "job_id": "ab" * 16, "role": "provider", "model": "tiny", "peer_id": PEER, "state": "running", "tokens_out": 7,
    "cost_microcredits": 5, "started_ms": 1000,
}  # fmt: skip


def shot(**status: Any) -> dict[str, Any]:
    state = {
        "name": "gpu-1", "ready": True, "uptime_s": 3.0, "peers_connected": 1, "devices": [DEVICE],
        "jobs": {"running": 1, "waiting": 2}, "earned_microcredits": 123, "spent_microcredits": 4,
    }  # fmt: skip
    return {"schema": 1, "at_ms": 3500, "status": state | status, "jobs": [JOB], "models": [], "findings": []}


@pytest.fixture(autouse=True)
def peers(daemon: FakeDaemon) -> None:
    peer = {
        "peer_id": PEER, "name": "gpu-2", "connected": True, "models": [{"name": "tiny"}], "slots_free": 1,
        "slots_total": 2, "queue_ms": 0,
    }  # fmt: skip
    daemon.answer("GET /api/v1/peers", {"schema": 1, "peers": [peer]})


def watch(daemon: FakeDaemon, *shots: dict[str, Any]) -> None:
    daemon.answer("GET /api/v1/events", [f"data: {json.dumps(one)}" for one in shots])


def test_present_state_is_shown_once(daemon: FakeDaemon) -> None:
    watch(daemon, shot(problems={"ledger": "disk \x1b[2J full"}), shot(name="later"))
    ran = souk("top", "--once")
    assert ran.code == 0 and "later" not in ran.out and "\x1b" not in ran.out
    for part in (
        "gpu-1 (ready)",
        "1 running, 2 waiting",
        "123 µc",
        "a processor",
        "running",
        "2.5 s",
        "gpu-2",
        "1/2",
    ):
        assert part in ran.out
    shown = souk("top", "--once", "-o", "json").json()
    assert shown["status"]["name"] == "gpu-1" and shown["peers"][0]["name"] == "gpu-2"


def test_every_snapshot_is_a_line_until_the_daemon_goes(daemon: FakeDaemon) -> None:
    watch(daemon, shot(), shot(name="later"))
    ran = souk("top", "-o", "jsonl")
    assert [json.loads(line)["status"]["name"] for line in ran.out.splitlines()] == ["gpu-1", "later"]
    assert ran.code == 4 and "it is stopping" in ran.err


def test_snapshots_that_come_too_soon_are_left_out(daemon: FakeDaemon) -> None:
    watch(daemon, *(shot(uptime_s=float(i)) | {"at_ms": i * 990} for i in range(6)))
    ran = souk("top", "-o", "jsonl", "--interval", "3s")
    assert [json.loads(line)["status"]["uptime_s"] for line in ran.out.splitlines()] == [0.0, 3.0]
    assert sum(asked[0] == "GET /api/v1/peers" for asked in daemon.asked) == 2


def test_top_ends_with_4_when_there_is_no_daemon() -> None:
    assert souk("top", "--once", "--api", "http://127.0.0.1:1").code == 4


@pytest.mark.slow
def test_q_ends_the_live_view_on_a_terminal(daemon: FakeDaemon) -> None:
    ended: list[bool] = []
    daemon.answer("GET /api/v1/events", [f"data: {json.dumps(shot())}", lambda: ended.append(True)])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "node.cli", "top"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # As a shell's background job has it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        os.close(theirs)
        try:
            shown, until = b"", time.monotonic() + 20
            while b"gpu-2" not in shown and time.monotonic() < until and select.select([ours], [], [], 10)[0]:
                shown += os.read(ours, 65536)
            assert b"gpu-2" in shown
            os.write(ours, b"q")
            assert process.wait(10) == 0
        finally:
            process.kill()
    os.close(ours)
    assert daemon.client_gone.wait(5) and ended
