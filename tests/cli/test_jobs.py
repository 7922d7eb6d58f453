import json
from typing import Any

import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk

JOB = "ab" * 16
BOUGHT: dict[str, Any] = {
    "job_id": JOB, "contract_id": "c0ffee00" * 8, "role": "requester", "peer_id": PEER, "model": "smol",
    "state": "failed", "tokens_in": 12, "tokens_out": 34, "cost_microcredits": 5_678, "started_ms": 0,
    "first_token_ms": 250, "ended_ms": 2_500, "code": "no_capacity", "message": "nobody took it\x1b[2J",
}  # fmt: skip
OPEN = BOUGHT | {"state": "streaming", "ended_ms": None, "code": None, "message": None, "first_token_ms": None}
TRACE = {
    "schema": 1,
    "job": BOUGHT,
    "timeline": [
        {"step": "asking", "at_ms": 1, "peers": 3},
        {"step": "quoted", "at_ms": 40, "peer_id": PEER, "price_max_microcredits": 900, "queue_ms": 100},
        {
            "step": "passed_over", "at_ms": 1_500, "peer_id": PEER, "code": "busy", "message": "8 of 8",
            "retry_after_ms": 2_000,
        },
    ],
    "steps_left_out": 4,
}  # fmt: skip


def test_jobs_are_a_table_of_the_newest(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/jobs?limit=20", {"schema": 1, "jobs": [OPEN, BOUGHT]})
    ran = souk("job")
    head, first, second = ran.out.splitlines()
    assert ran.code == 0 and head.split()[:4] == ["JOB", "ROLE", "MODEL", "PEER"]
    for part in (JOB[:12], "requester", "smol", "…bziXHP7Z", "5,678", "1970-01-01 00:00:00Z"):
        assert part in first and part in second
    assert "streaming" in first and "running" in first
    assert "failed (no_capacity)" in second and "250 ms" in second and "2.5 s" in second


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        (["--mine"], "role=requester%2Clocal&limit=20"),
        (["--served", "--limit", "5"], "role=provider&limit=5"),
        (["--state", "a b&c"], "state=a%20b%26c&limit=20"),
    ],
)
def test_list_asks_for_what_its_options_say(daemon: FakeDaemon, arguments: list[str], query: str) -> None:
    daemon.answer(f"GET /api/v1/jobs?{query}", {"schema": 1, "jobs": []})
    ran = souk("job", "ls", *arguments)
    assert ran.code == 0 and "No jobs here" in ran.out


def test_timeline_is_told_step_by_step(daemon: FakeDaemon) -> None:
    daemon.answer(f"GET /api/v1/jobs/{JOB[:8]}", TRACE)
    out = souk("job", "show", JOB[:8]).out
    assert "\x1b" not in out
    for part in ("nobody took it", "12 in, 34 out", "5,678 µc", "3 peers", "at most 900 µc · queue 100 ms"):
        assert part in out
    (line,) = [line for line in out.splitlines() if "passed over" in line]
    assert line.startswith("1.5 s") and "busy: 8 of 8 · try again in 2.0 s" in line
    assert "4 steps in the middle are left out" in out


def test_timeline_says_that_finer_steps_are_lost_when_the_job_is_from_before_a_restart(daemon: FakeDaemon) -> None:
    lost = "only what signed messages prove is left"
    daemon.answer(f"GET /api/v1/jobs/{JOB}", TRACE | {"is_restored": True})
    assert lost in souk("job", "show", JOB).out
    daemon.answer(f"GET /api/v1/jobs/{JOB}", TRACE)
    assert lost not in souk("job", "show", JOB).out


def test_timeline_is_one_step_a_line_when_lines_are_wanted(daemon: FakeDaemon) -> None:
    daemon.answer(f"GET /api/v1/jobs/{JOB}", TRACE)
    lines = souk("job", "show", JOB, "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == TRACE["timeline"]
    assert souk("job", "show", JOB, "-o", "json").json() == TRACE


def test_cancel_tells_how_the_job_ended(daemon: FakeDaemon) -> None:
    request = f"POST /api/v1/jobs/{JOB[:4]}/cancel"
    daemon.answer(request, {"schema": 1, "job": BOUGHT | {"state": "cancelled"}})
    ran = souk("job", "cancel", JOB[:4])
    assert (ran.code, ran.out, ran.err) == (0, f"{JOB} cancelled: 34 tokens, 5,678 µc\n", "")
    daemon.answer(request, {"schema": 1, "job": BOUGHT | {"state": "closed"}})
    assert "complete before" in souk("job", "cancel", JOB[:4]).err


@pytest.mark.parametrize(("status", "code", "exit_code"), [(404, "job_not_found", 5), (409, "job_over", 1)])
def test_cancel_ends_with_the_code_of_its_refusal(
    daemon: FakeDaemon, status: int, code: str, exit_code: int
) -> None:
    error = {"error": {"message": "not so", "type": "invalid_request_error", "param": None, "code": code}}
    daemon.answer(f"POST /api/v1/jobs/{JOB}/cancel", error, status)
    ran = souk("job", "cancel", JOB)
    assert (ran.code, ran.out, ran.err) == (exit_code, "", "souk: not so\n")


def test_job_id_cannot_name_another_path(daemon: FakeDaemon) -> None:
    souk("job", "show", "../status")
    assert daemon.asked[-1][0] == "GET /api/v1/jobs/..%2Fstatus"


def test_timeline_comes_with_the_signed_messages_when_they_are_wanted(daemon: FakeDaemon) -> None:
    bundle = {"network": "aa", "messages": [{"type": "receipt", "from": "provider", "at_ms": 1, "envelope": "00"}]}
    daemon.answer(f"GET /api/v1/jobs/{JOB}", TRACE)
    daemon.answer(f"GET /api/v1/receipts/{BOUGHT['contract_id']}", {"schema": 1, "bundle": bundle})
    assert "receipt  from provider" in souk("job", "show", JOB, "--receipt").out
    assert souk("job", "show", JOB, "--receipt", "-o", "json").json() == TRACE | {"bundle": bundle}
    daemon.answer(f"GET /api/v1/jobs/{JOB}", TRACE | {"job": BOUGHT | {"contract_id": None}})
    ran = souk("job", "show", JOB, "--receipt")
    assert ran.code == 0 and "no contract" in ran.err
