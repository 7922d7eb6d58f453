import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SIDES = ("requester", "provider")
BENCH = ROOT / "scripts" / "bench"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run_python(script: str, *arguments: str, text: str = "") -> str:
    command = [sys.executable, str(BENCH / script), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_contract_benchmark_trades_two_windows_and_reports_its_split() -> None:
    printed = run_python("contract_cpu.py", "--json", "--rounds", "1")
    report = json.loads(printed)
    # contract, accept, two meters, two vouchers, receipt, closing
    assert report["settings"]["messages"] == 8
    assert report["machine"]["commit"] and report["machine"]["cores"] >= 1
    rows = {row["name"]: row for row in report["rows"]}
    for side in SIDES:
        own = {name: row["median"] for name, row in rows.items() if name.startswith(f"{side}: ")}
        total, wall = own.pop(f"{side}: sign + verify + ledger"), own.pop(f"{side}: ledger with its waits")
        assert len(own) == 3 and wall > 0
        assert total == pytest.approx(sum(own.values()))
    both = rows["both: sign + verify + ledger"]["median"]
    assert both == pytest.approx(sum(rows[f"{side}: sign + verify + ledger"]["median"] for side in SIDES))
    # Any machine that writes to a disk at all.
    assert rows["ledger: 1 poster"]["min"] > 10 and rows["ledger: 50 posters"]["min"] > 10

    table = run_python("table.py", text=printed)
    assert table.count("\ncontract ") == len(report["rows"])


def test_http_benchmark_counts_tokens_and_the_lag_of_the_loop(figure: Callable[[str, str], None]) -> None:
    rows = {
        row["name"]: row for row in json.loads(run_python("http_overhead.py", "--json", "--rounds", "2"))["rows"]
    }
    assert len(rows) == 4
    for name, row in rows.items():
        figure(f"HTTP overhead, {name}", f"{row['median']:.4g} {row['unit']}")
    # Half of what must be: the gate shares its machine. The figure itself is the benchmark's.
    assert rows["streamed, 1 at once"]["max"] > 5_000
    assert rows["event loop late, p99, 1 at once"]["min"] < 20


def test_run_is_executable_and_refuses_an_argument_that_it_does_not_know() -> None:
    assert os.access(BENCH / "run", os.X_OK)
    done = subprocess.run([str(BENCH / "run"), "--jsno"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert done.stderr == "usage: scripts/bench/run [--json]\n"
