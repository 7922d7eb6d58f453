from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from tests.cli.fakes import FakeDaemon, souk

MEASURED: dict[str, Any] = {
    "schema": 1, "device": "cpu", "model": "smol", "task": "generate", "dtype": "fp32", "runs": 3,
    "tokens_per_s_min": 90.0, "tokens_per_s_max": 110.0, "was_cut": False,
    "measured": {"tokens_per_s": 100.0, "matmul_gflops": 50, "read_mb_per_s": 9_000},
    "advertised": {"tokens_per_s": 80.0, "matmul_gflops": None, "read_mb_per_s": 10_000},
}  # fmt: skip


def test_figures_stand_beside_what_is_advertised(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/bench", MEASURED)
    ran = souk("bench", "--device", "cpu", "--model", "smol", "--seconds", "1.5")
    assert daemon.body == {"model": "smol", "device": "cpu", "seconds": 1.5}
    head, _titles, speed, matmul, read = ran.out.splitlines()
    assert ran.code == 0 and head == "smol (fp32) on cpu: 3 runs, 90.0 to 110.0 tokens/s"
    assert speed.split() == ["tokens/s,", "one", "sequence", "100.0", "80.0", "125.0"]
    assert matmul.split()[-3:] == ["50", "-", "-"] and read.split()[-3:] == ["9,000", "10,000", "90.0"]
    assert souk("bench", "-o", "json").json() == MEASURED


def test_rates_that_were_not_measured_are_a_dash(daemon: FakeDaemon) -> None:
    measured = {"tokens_per_s": 100.0, "matmul_gflops": None, "read_mb_per_s": None}
    daemon.answer("POST /api/v1/bench", MEASURED | {"measured": measured})
    _head, _titles, _speed, matmul, read = souk("bench").out.splitlines()
    assert matmul.split()[-3:] == ["-", "-", "-"] and read.split()[-3:] == ["-", "10,000", "-"]


@pytest.mark.parametrize(("status", "code", "exit_code"), [(409, "device_busy", 9), (404, "model_not_found", 5)])
def test_bench_ends_with_the_code_of_its_refusal(
    daemon: FakeDaemon, status: int, code: str, exit_code: int
) -> None:
    error = {"error": {"message": "not now", "type": "x", "param": None, "code": code}}
    daemon.answer("POST /api/v1/bench", error, status)
    ran = souk("bench")
    assert (ran.code, ran.out, ran.err) == (exit_code, "", "souk: not now\n")


def test_measuring_that_a_job_ended_says_so(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/bench", MEASURED | {"was_cut": True})
    assert "a job came" in souk("bench").err


def test_bench_starts_no_worker_beside_a_daemon_that_does_not_answer(home: Home) -> None:
    home.create()
    with home.locked():
        assert souk("bench").code == 4
    assert souk("bench", "--api", "http://127.0.0.1:9").code == 4


def test_bench_without_a_daemon_names_the_model_that_is_not_there(home: Home, tmp_path: Path) -> None:
    ran = souk("bench", "--model", "huge", "--device", "cpu")
    assert ran.code == 5 and "a worker of my own" in ran.err and "huge" in ran.err
