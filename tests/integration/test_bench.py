import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from node.execution.engine.llama import load_llama
from node.execution.shape import read_shape
from node.models.import_demo import DEMO_MODEL
from scripts.bench.mixed_load import arrive
from tests.execution.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent
SIDES = ("requester", "provider")
STORE = Path(sys.prefix) / "share" / "models"
INTER_TOKEN_MS = 200
DAEMON_TIME = "daemon's processor time of a token"
DAEMON_SHARE = "daemon's share of the processor time"
BENCH = ROOT / "scripts" / "bench"

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def run_python(script: str, *arguments: str, text: str = "", timeout_s: int = 60) -> str:
    command = [sys.executable, str(BENCH / script), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=True)
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
    # Ten times what may be: on a busy machine a process waits that long for a core.
    assert rows["event loop late, p99, 1 at once"]["min"] < 200


def test_mixed_load_ends_with_the_first_token_of_the_prompt(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    model = load_llama(folder, read_shape(folder), device=torch.device("cpu"), dtype=torch.float32)
    run = arrive(model, prompt_tokens=200, prefill_tokens=64, inter_token_ms=INTER_TOKEN_MS)
    # From 4 passes, of 64 tokens each, to 13 of the fewest that one reads.
    assert run.gap_longest < run.first_token <= 13 * run.gap_longest
    assert run.gap_longest_cpu > 0


@pytest.mark.deep
@pytest.mark.real_model
@pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model")
def test_answers_go_on_as_promised_while_a_prompt_of_2000_tokens_arrives(
    figure: Callable[[str, str], None],
) -> None:
    arguments = ("--rounds", "5", "--promise-only", "--inter-token-ms", str(INTER_TOKEN_MS), "--model", DEMO_MODEL)
    report = json.loads(run_python("mixed_load.py", "--json", *arguments, timeout_s=600))
    rows = {row["name"].partition(": ")[2]: row for row in report["rows"]}
    wall, cpu = rows["longest gap"], rows["longest gap, processor time"]
    figure(
        f"mixed load, longest gap of 8 answers beside a 2,000-token prompt, {report['machine']['cpu']}",
        f"{wall['median']:.0f} ms, {wall['max']:.0f} at most in {len(wall['samples'])} arrivals (promise"
        f" {INTER_TOKEN_MS} ms); in processor time {cpu['median']:.0f} and {cpu['max']:.0f} ms; load average"
        f" {report['machine']['load_1min']:.2f}",
    )
    figure(
        "mixed load, first token of that prompt",
        f"{rows['first token of the prompt']['median'] / 1000:.1f} s",
    )
    # By the wall, and at most, it is the benchmark's own: the suite shares its machine.
    assert cpu["median"] <= INTER_TOKEN_MS


@pytest.mark.deep
@pytest.mark.real_model
@pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model")
def test_worker_process_costs_little_of_the_speed(figure: Callable[[str, str], None]) -> None:
    report = json.loads(run_python("worker_hop.py", "--json", "--rounds", "7", timeout_s=600))
    rows = {row["name"]: row for row in report["rows"]}

    def told(name: str) -> str:
        row = rows[name]
        return f"{row['median']:.3g} {row['unit']} ({row['min']:.3g} to {row['max']:.3g})"

    by_cpu = rows["tokens by processor time, worker ÷ in process"]
    figure(
        "worker hop, tokens/s through the worker ÷ in process",
        f"{told('decode, worker ÷ in process')} by the wall, {by_cpu['median']:.3g} ({by_cpu['min']:.3g} to"
        f" {by_cpu['max']:.3g}) by processor time, {len(by_cpu['samples'])} rounds in turn; load average"
        f" {report['machine']['load_1min']:.2f}",
    )
    figure(
        "worker hop, the daemon's part",
        f"{told(DAEMON_TIME)} a token, {told(DAEMON_SHARE)} of the processor time",
    )
    figure(
        "worker hop, p99 of the API",
        f"idle {rows['API, idle, p99']['median']:.1f} ms, while a job runs"
        f" {rows['API, while a job runs, p99']['median']:.1f} ms",
    )
    # A machine that the suite shares: the whole is noise, what the daemon does for a token is not.
    assert rows[DAEMON_SHARE]["median"] <= 5


def test_run_is_executable_and_refuses_an_argument_that_it_does_not_know() -> None:
    assert os.access(BENCH / "run", os.X_OK)
    done = subprocess.run([str(BENCH / "run"), "--jsno"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert done.stderr == "usage: scripts/bench/run [--json]\n"
