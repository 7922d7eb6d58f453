"""The demo as a person runs it: real nodes, the real model, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.real_model, pytest.mark.slow]
DEMO = (sys.executable, "-m", "node.cli", "demo", "--max-tokens", "16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its homes, so that what it leaves behind can be found."""
    if not (Path(sys.prefix) / "share" / "models").is_dir():
        pytest.skip("no demo model: scripts/setup installs it")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tempfile.tempdir = None
    return tmp_path


def left_behind(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(folder) and process.pid != os.getpid():
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [*found, *map(str, folder.iterdir())]


def test_demo_buys_an_answer_verifies_the_receipt_and_stops_everything(folder: Path) -> None:
    done = subprocess.run([*DEMO, "-o", "json"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["text"] and found["usage"]["completion_tokens"] <= 16
    assert found["proof"]["valid"] and found["proof"]["status"] == "complete"
    assert found["proof"]["cost_microcredits"] == found["souk"]["cost_microcredits"] > 0
    assert "all nodes stopped" in done.stderr
    assert left_behind(folder) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_demo_leaves_no_process_when_interrupted_at_any_moment(folder: Path, seed: int) -> None:
    after_s = random.Random(seed).uniform(0.1, 12.0)
    with subprocess.Popen(DEMO, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode in (0, 130), f"after {after_s} s: {err}"
    assert left_behind(folder) == []
