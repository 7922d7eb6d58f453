from typing import Any

import pytest

from tests.cli.fakes import FakeDaemon, souk


def finding(about: str, code: str, *, blocks: bool = True) -> dict[str, Any]:
    return {"about": about, "code": code, "blocks": blocks, "message": f"{code} it is", "advice": f"cure {code}"}


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([finding("serve", "role")], 0),
        ([finding("serve", "no_model")], 1),
        ([finding("buy", "no_peers")], 1),
        ([finding("buy", "busy", blocks=False)], 0),
    ],
)
def test_why_says_what_the_node_cannot_do_and_what_helps(
    daemon: FakeDaemon, findings: list[dict[str, Any]], code: int
) -> None:
    blocked = {it["about"] for it in findings if it["blocks"]}
    can = {"can_serve": "serve" not in blocked, "can_buy": "buy" not in blocked}
    daemon.answer("GET /api/v1/why", {"schema": 1, "findings": findings} | can)
    ran = souk("why")
    assert (ran.code, ran.err) == (code, "")
    assert ("cannot sell" in ran.out) is not can["can_serve"] and ("cannot buy" in ran.out) is not can["can_buy"]
    for it in findings:
        mark = "✗" if it["blocks"] else "·"
        assert f"  {mark} {it['message']}\n      {it['advice']}" in ran.out


def test_why_of_a_job_is_told_in_sentences(daemon: FakeDaemon) -> None:
    answer = {"schema": 1, "job_id": "ab" * 16, "state": "failed", "summary": "It failed.", "findings": []}
    daemon.answer("GET /api/v1/jobs/abab/why", answer)
    ran = souk("why", "abab")
    assert ran.code == 0 and ran.out.splitlines()[:2] == ["It failed.", "  Nothing stood in its way."]
    daemon.answer("GET /api/v1/jobs/abab/why", answer | {"findings": [finding("job", "bu\x1bsy", blocks=False)]})
    out = souk("why", "abab").out
    assert "  · bu�sy it is\n      cure bu�sy\n" in out and "Nothing stood" not in out
    assert souk("why", "abab", "-o", "json").json()["summary"] == "It failed."


def test_why_ends_with_5_when_there_is_no_such_job(daemon: FakeDaemon) -> None:
    error = {
        "error": {"message": "no job", "type": "invalid_request_error", "param": "job", "code": "job_not_found"}
    }
    daemon.answer("GET /api/v1/jobs/abab/why", error, 404)
    assert souk("why", "abab").code == 5
