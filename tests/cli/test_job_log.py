import json

import pytest

from node.cli import job_log
from tests.cli.fakes import FakeDaemon, souk

STEPS = [{"step": "asking", "at_ms": 1000, "peers": 2}, {"step": "first_token", "at_ms": 2500}]


def trace(steps: list[dict[str, object]], *, state: str, left_out: int = 0) -> dict[str, object]:
    job = {"job_id": "aa", "state": state, "ended_ms": None if state == "streaming" else 3000}
    return {"schema": 1, "job": job, "timeline": steps, "steps_left_out": left_out}


def test_logs_print_each_step_and_why_a_job_failed(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/jobs/aaaa", trace(STEPS, state="failed"))
    finding = {"message": "the peer was busy", "advice": "try again"}
    daemon.answer("GET /api/v1/jobs/aaaa/why", {"findings": [finding]})
    lines = souk("job", "logs", "aaaa").out.splitlines()
    assert [line.split("  ", 1)[1] for line in lines[:2]] == ["asking  2 peers", "first token"]
    assert lines[0].split()[0].endswith(":01.000") and lines[2] == "why: the peer was busy (try again)"


def test_logs_follow_a_job_until_it_is_over_and_say_nothing_twice(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"step": "done", "at_ms": 2900}
    later = iter([trace([STEPS[0], done], state="closed", left_out=1)])
    path = "GET /api/v1/jobs/aaaa"
    daemon.answer(path, trace(STEPS, state="streaming"))
    clock = type("Clock", (), {"sleep": lambda _s: daemon.answer(path, next(later))})
    monkeypatch.setattr(job_log, "time", clock)
    ran = souk("job", "logs", "-f", "aaaa", "-o", "jsonl")
    assert [json.loads(line) for line in ran.out.splitlines()] == [*STEPS, done]
