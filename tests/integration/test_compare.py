"""``souk compare`` as a person runs it, as small as it gets: real daemons, a SIGKILL on each side."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.paced_model import NAME, write_paced_store

# The short twin: workload and figures in tests/testnet, the command in tests/cli.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.deep]


def test_compare_shows_that_the_mesh_answers_when_a_node_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = write_paced_store(tmp_path / "store")
    size = ["--nodes", "2", "--requests", "2", "--rounds", "1", "--max-tokens", "64"]
    command = [sys.executable, "-m", "node.cli", "compare", "-o", "json", "--model", NAME, *size]
    done = subprocess.run(
        [*command, "--models-dir", str(store)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert {name: arm["complete"] for name, arm in arms.items() if name != "one node, killed"} == {
        "one node": 2,
        "mesh of 2": 2,
        "mesh of 2, 1 killed": 2,
    }
    assert arms["one node, killed"]["complete"] < 2
    assert len(found["killed"]) == 2
    assert arms["mesh of 2, 1 killed"]["continued"] >= 1
    assert arms["mesh of 2"]["microcredits_per_million"] > 0
    assert all(arm["same_text"] == arm["complete"] for arm in arms.values())
    assert list(tmp_path.iterdir()) == [store]
