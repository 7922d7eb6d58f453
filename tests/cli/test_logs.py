import json
import signal
import threading

import pytest

from tests.cli.fakes import FakeDaemon, souk

LINE = {"number": 7, "at_ms": 1000, "level": "warning", "text": "03:17:13.120 warning node.x bad \x1b[2J  a=1"}
SHOWN = "03:17:13.120 warning node.x bad \ufffd[2J  a=1"


def test_lines_are_printed_without_control_characters(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/logs?limit=1000", {"schema": 1, "lines": [LINE]})
    assert souk("logs").out == f"{SHOWN}\n"
    assert souk("logs", "-o", "json").json()["lines"] == [LINE]
    assert json.loads(souk("logs", "-o", "jsonl").out) == LINE


def test_options_become_the_daemons_query(daemon: FakeDaemon) -> None:
    query = "since_s=300.0&limit=5&job=abcd&level=warning&grep=a+b%26"
    daemon.answer(f"GET /api/v1/logs?{query}", {"schema": 1, "lines": []})
    ran = souk(
        "logs", "--since", "5m", "-n", "5", "--job", "abcd", "--level", "warning", "--grep", "a b&"
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "") and "no such line" in ran.err


def test_unknown_job_ends_with_5(daemon: FakeDaemon) -> None:
    error = {"error": {"message": "no job", "code": "job_not_found"}}
    daemon.answer("GET /api/v1/logs?limit=1000&job=abcd", error, 404)
    assert souk("logs", "--job", "abcd").code == 5


@pytest.mark.parametrize(
    ("form", "expected"), [("table", SHOWN), ("jsonl", json.dumps(LINE)), ("json", json.dumps(LINE))]
)
def test_follower_prints_lines_until_the_daemon_goes(daemon: FakeDaemon, form: str, expected: str) -> None:
    daemon.answer("GET /api/v1/logs/events?limit=1000", [": waiting", f"data: {json.dumps(LINE)}"])
    ran = souk("logs", "-f", "-o", form)
    assert (ran.code, ran.out) == (4, f"{expected}\n") and "it is stopping" in ran.err


def test_follower_ends_well_at_ctrl_c(daemon: FakeDaemon) -> None:
    main = threading.main_thread().ident or 0
    lines = [f"data: {json.dumps(LINE)}", lambda: signal.pthread_kill(main, signal.SIGINT)]
    daemon.answer("GET /api/v1/logs/events?limit=1000", lines)
    ran = souk("logs", "-f")
    assert ran.code == 0 and not ran.err
    assert daemon.client_gone.wait(5)
