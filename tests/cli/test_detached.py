import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk
from tests.cli.test_quote import OFFER, REFUSAL

JOB = "ab" * 16
SPEC = {"task": "generate", "model": "smol", "prompt": "Once"}
SOUK = {
    "job_id": JOB, "peer": PEER, "contract_id": "c0" * 32, "receipt_id": "bb" * 32, "cost_microcredits": 120,
    "first_token_ms": 200, "duration_ms": 1200,
}  # fmt: skip
ANSWER: dict[str, Any] = {
    "task": "generate", "schema": 1, "model": "smol", "usage": {"units_in": 3, "units_out": 2}, "souk": SOUK,
    "text": "Hello\x1b[2J", "finish_reason": "stop",
}  # fmt: skip
DONE: dict[str, Any] = {
    "schema": 1, "job_id": JOB, "state": "closed", "is_over": True, "task": "generate", "model": "smol",
    "answer": ANSWER, "error": None, "details": None,
}  # fmt: skip
OPEN = DONE | {"state": "streaming", "is_over": False, "answer": None}
RESULT = f"GET /api/v1/jobs/{JOB}/result"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(SPEC))
    return str(path)


def failed(code: str, **details: object) -> dict[str, Any]:
    error = {"message": "not so", "type": "server_error", "param": None, "code": code}
    return DONE | {"state": "failed", "answer": None, "error": error, "details": details or None}


def test_submit_prints_the_id_alone(daemon: FakeDaemon, spec: str) -> None:
    daemon.answer("POST /api/v1/jobs", {"schema": 1, "job_id": JOB, "is_new": True}, 202)
    ran = souk("job", "submit", spec, "--set", "max_tokens=5", "--key", "k-1")
    assert (ran.code, ran.out, ran.err) == (0, f"{JOB}\n", "")
    _request, body, headers = daemon.asked[-1]
    assert body == SPEC | {"max_tokens": 5} and headers["Idempotency-Key"] == "k-1"


def test_submit_says_that_its_key_was_used_already(daemon: FakeDaemon, spec: str) -> None:
    daemon.answer("POST /api/v1/jobs", {"schema": 1, "job_id": JOB, "is_new": False}, 202)
    ran = souk("job", "submit", spec, "--key", "k-1", "-o", "json")
    assert ran.json()["job_id"] == JOB and "made the job already" in ran.err


def test_submit_reads_a_pipe_and_waits_for_the_answer(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(SPEC).encode())))
    daemon.answer("POST /api/v1/jobs", {"schema": 1, "job_id": JOB, "is_new": True}, 202)
    daemon.answer(f"{RESULT}?wait_s=20", DONE)
    ran = souk("job", "submit", "-", "--wait")
    assert (ran.code, ran.out) == (0, "Hello\x1b[2J\n")  # no terminal: as it is
    assert f"job {JOB}" in ran.err and "120 µc" in ran.err


def test_bad_spec_is_sent_to_nobody(daemon: FakeDaemon, spec: str) -> None:
    ran = souk("job", "submit", spec, "--set", "max_tokens=0", "--set", "sed=1")
    assert ran.code == 2 and not daemon.asked and ran.out == ""
    assert "--set: sed: unknown key (did you mean seed?)" in ran.err and "max_tokens: expected int >= 1" in ran.err


def test_dry_run_asks_for_prices_and_orders_nothing(daemon: FakeDaemon, spec: str) -> None:
    daemon.answer("GET /api/v1/models", {"schema": 1, "models": []})
    daemon.answer("POST /api/v1/jobs/quote", {"schema": 1, "model": "smol", "quotes": [OFFER, REFUSAL]})
    ran = souk("job", "submit", spec, "--dry-run")
    assert ran.code == 0 and "1,400" in ran.out and daemon.body == SPEC
    daemon.answer("POST /api/v1/jobs/quote", {"schema": 1, "model": "smol", "quotes": [REFUSAL]})
    assert souk("job", "submit", spec, "--dry-run").code == 6
    assert "POST /api/v1/jobs" not in [request for request, *_ in daemon.asked]


def test_dry_run_asks_nobody_when_the_job_would_run_here(daemon: FakeDaemon, spec: str) -> None:
    own = {"name": "smol", "model_id": "ab" * 32, "local": True}
    daemon.answer("GET /api/v1/models", {"schema": 1, "models": [own]})
    ran = souk("job", "submit", spec, "--dry-run", "-o", "json")
    assert ran.code == 0 and ran.json()["quotes"] == [] and "own devices" in ran.err


def test_result_is_the_answer_and_nothing_else(daemon: FakeDaemon) -> None:
    daemon.answer(f"{RESULT}?wait_s=0", DONE)
    ran = souk("job", "result", JOB)
    assert (ran.code, ran.out) == (0, "Hello\x1b[2J\n") and "…bziXHP7Z · 120 µc · 1.2 s" in ran.err
    assert souk("job", "result", JOB, "-o", "json").json() == DONE
    vectors = [{"index": 0, "vector": [0.5]}]
    other = {name: ANSWER[name] for name in ("schema", "model", "usage", "souk")} | {"vectors": vectors}
    daemon.answer(f"{RESULT}?wait_s=0", DONE | {"task": "embed", "answer": {"task": "embed"} | other})
    assert souk("job", "result", JOB, "-q").json() == {"task": "embed", "model": "smol", "vectors": vectors}


def test_result_of_a_job_that_runs_is_1_unless_it_is_waited_for(daemon: FakeDaemon) -> None:
    daemon.answer(f"{RESULT}?wait_s=0", OPEN, 202)
    ran = souk("job", "result", JOB)
    assert (ran.code, ran.out) == (1, "") and "streaming; --wait" in ran.err
    assert souk("job", "result", JOB, "-o", "json").json() == OPEN
    daemon.answer(f"{RESULT}?wait_s=20", DONE)
    assert souk("job", "result", JOB, "--wait").code == 0


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        *(("peer_failed", 1), ("cancelled", 1), ("input_refused", 2), ("task_not_served", 2)),
        *(("model_not_found", 5), ("no_capacity", 6), ("deadline", 7)),
    ],
)
def test_result_ends_as_the_job_did(daemon: FakeDaemon, code: str, exit_code: int) -> None:
    refusals = [{"peer": PEER, "code": "busy", "message": "8 of 8"}] if code == "no_capacity" else None
    details = {"refusals": refusals} if refusals else {}
    daemon.answer(f"{RESULT}?wait_s=0", failed(code, **details))
    ran = souk("job", "result", JOB)
    assert (ran.code, ran.out) == (exit_code, "") and f"job {JOB} failed: not so" in ran.err
    assert ("busy: 8 of 8" in ran.err) == (code == "no_capacity")


@pytest.mark.parametrize(
    ("status", "code", "exit_code"), [(404, "job_not_found", 5), (410, "result_gone", 5), (409, "not_ours", 1)]
)
def test_result_ends_with_the_code_of_its_refusal(
    daemon: FakeDaemon, status: int, code: str, exit_code: int
) -> None:
    error = {"error": {"message": "not so", "type": "x", "param": "job", "code": code}}
    daemon.answer(f"{RESULT}?wait_s=0", error, status)
    ran = souk("job", "result", JOB)
    assert (ran.code, ran.out, ran.err) == (exit_code, "", "souk: not so\n")


def test_job_that_outlasts_the_timeout_is_told_to_go_on(daemon: FakeDaemon) -> None:
    daemon.answer(f"{RESULT}?wait_s=20", OPEN, 202)
    ran = souk("job", "result", JOB, "--wait", "--timeout", "0.05")
    assert ran.code == 7 and f"goes on, and costs: souk job result {JOB}, or souk job cancel {JOB}" in ran.err


def test_rerun_prints_the_new_id_or_that_the_spec_is_forgotten(daemon: FakeDaemon) -> None:
    path = f"POST /api/v1/jobs/{JOB}/rerun"
    daemon.answer(path, {"schema": 1, "job_id": "cd" * 16, "is_new": True}, 202)
    assert souk("job", "rerun", JOB).out == f"{'cd' * 16}\n"
    error = {"error": {"message": "submit it again", "type": "x", "param": "job", "code": "spec_gone"}}
    daemon.answer(path, error, 410)
    ran = souk("job", "rerun", JOB)
    assert (ran.code, ran.err) == (5, "souk: submit it again\n")


def test_validate_needs_no_daemon(spec: str) -> None:
    ran = souk("job", "validate", spec)
    assert (ran.code, ran.out) == (0, f"{spec}: a generate job for smol\n")
    ran = souk("job", "validate", spec, "--set", "task=vad")
    assert (ran.code, ran.out) == (2, "") and "samples: is missing" in ran.err
    ran = souk("job", "validate", spec, "--set", "sed=1", "-o", "json")
    fault = {"where": "--set", "field": "sed", "message": "unknown key (did you mean seed?)"}
    assert ran.code == 2 and ran.json() == {"schema": 1, "valid": False, "problems": [fault]}
