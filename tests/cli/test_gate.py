from typing import Any

import pytest

from tests.cli.fakes import FakeDaemon, souk


def gate(**changes: object) -> dict[str, Any]:
    facts = {"open": False, "drained": True, "reasons": ["drained by hand"], "opens_at_ms": None, "jobs": 0}
    return {"schema": 1, "gate": facts | {"hands_back_in_s": None, "unread": []} | changes}


@pytest.mark.parametrize(
    ("options", "grace_s"), [([], None), (["--now"], 0), (["--grace", "5m"], 300.0), (["--grace", "90s"], 90.0)]
)
def test_drain_asks_for_the_grace_that_was_given(
    daemon: FakeDaemon, options: list[str], grace_s: float | None
) -> None:
    daemon.answer("POST /api/v1/drain", gate())
    ran = souk("drain", *options)
    assert (ran.code, daemon.body) == (0, {"grace_s": grace_s})
    assert ran.out == "closed to peers: drained by hand\n"


def test_drain_waits_until_no_job_is_left_and_says_how_many_are(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answer("POST /api/v1/drain", gate(jobs=2))
    counts = iter([2, 1, 0])
    monkeypatch.setattr(
        "node.cli.gate.time", type("Clock", (), {"sleep": lambda _s: daemon.answer(*next_gate(counts))})
    )
    ran = souk("drain", "--json")
    assert ran.json()["gate"]["jobs"] == 0
    assert ran.err.splitlines() == ["2 jobs of peers still run", "1 job of peers still run"]


def next_gate(counts: Any) -> tuple[str, Any]:
    return "GET /api/v1/gate", gate(jobs=next(counts))


def test_drain_leaves_the_node_drained_when_its_waiting_is_interrupted(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_s: float) -> None:
        raise KeyboardInterrupt

    daemon.answer("POST /api/v1/drain", gate(jobs=2))
    monkeypatch.setattr("node.cli.gate.time", type("Clock", (), {"sleep": interrupt}))
    ran = souk("drain")
    assert ran.code == 130 and "stays drained" in ran.err
    assert souk("drain", "--no-wait").code == 0


def test_drain_ends_with_1_when_somebody_resumes_before_the_jobs_have_ended(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answer("POST /api/v1/drain", gate(jobs=2))
    daemon.answer("GET /api/v1/gate", gate(open=True, drained=False, reasons=[], jobs=2))
    monkeypatch.setattr("node.cli.gate.LOOK_S", 0.0)
    assert souk("drain").code == 1


def test_drain_leaves_the_node_drained_when_its_time_is_over(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answer("POST /api/v1/drain", gate(jobs=2))
    daemon.answer("GET /api/v1/gate", gate(jobs=2))
    monkeypatch.setattr("node.cli.gate.LOOK_S", 0.01)
    ran = souk("drain", "--timeout", "100ms")
    assert ran.code == 7 and "2 jobs of peers still run; the node stays drained" in ran.err


def test_drain_refuses_two_graces() -> None:
    assert souk("drain", "--now", "--grace", "5s").code == 2


def test_resume_ends_with_1_when_the_policy_keeps_peers_out(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/resume", gate(open=True, reasons=[]))
    ran = souk("resume")
    assert (ran.code, ran.out) == (0, "open to peers\n")
    daemon.answer("POST /api/v1/resume", gate(drained=False, reasons=["on battery"]))
    assert souk("resume").code == 1
