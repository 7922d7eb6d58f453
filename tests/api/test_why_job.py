"""Sentences from timelines: what is said, and what is left unsaid."""

from msgspec.structs import replace

from node.api.job_views import Finding, JobTrace, StepView
from node.api.views import JobView
from node.api.why_job import why_job
from tests.api.fakes import PEER_TEXT

PEER = f"…{PEER_TEXT[-8:]}"


def trace(
    *steps: tuple[str, int], state: str = "closed", role: str = "requester", code: str | None = None
) -> JobTrace:
    timeline = tuple(StepView(step=name, at_ms=at_ms, peer_id=PEER_TEXT, tokens_out=5) for name, at_ms in steps)
    job = JobView(
        job_id="aa", contract_id=None, role=role, peer_id=PEER_TEXT, model="m", state=state, tokens_out=40,  # type: ignore[arg-type]  # one of the three
        cost_microcredits=1_200, started_ms=0, first_token_ms=700, code=code,
        ended_ms=None if state == "streaming" else timeline[-1].at_ms,
    )  # fmt: skip
    return JobTrace(job=job, timeline=timeline)


def found(shown: JobTrace) -> dict[str, Finding]:
    return {finding.code: finding for finding in why_job(shown).findings}


def test_nothing_is_found_when_a_job_went_well() -> None:
    answer = why_job(trace(("asking", 1), ("contracted", 50), ("first_token", 700), ("paid", 3_000)))
    assert not answer.findings
    assert answer.summary == (
        "The job (bought) went well: 40 tokens in 3.0 s, the first after 700 ms, for 1,200 µc."
    )


def test_nothing_is_claimed_of_a_job_from_before_a_restart() -> None:
    shown = replace(trace(("contracted", 50), ("done", 900)), is_restored=True)
    assert "is lost" in found(shown)["restored"].message


def test_open_job_names_its_last_step() -> None:
    answer = why_job(trace(("asking", 1), ("contracted", 50), state="streaming"))
    assert answer.summary == "The job (bought) is open, 40 tokens so far; the last step: contracted."


def test_waits_are_found_where_the_time_went() -> None:
    shown = found(trace(("asking", 1), ("contracted", 4_000), ("first_token", 4_100), ("paid", 9_000)))
    assert shown.keys() == {"slow_contract"} and "4.0 s" in shown["slow_contract"].message
    shown = found(trace(("asking", 1), ("contracted", 90), ("first_token", 6_090), ("paid", 9_000)))
    assert shown.keys() == {"slow_first_token"} and "6.0 s" in shown["slow_first_token"].message


def test_lost_stream_is_told_with_how_long_it_was_away() -> None:
    steps = (("contracted", 1), ("first_token", 2), ("stream_lost", 500), ("stream_back", 2_500), ("paid", 3_000))
    shown = found(trace(*steps))
    assert shown.keys() == {"stream_back"}
    assert f"{PEER}: its stream was lost and came back after 2.0 s" in shown["stream_back"].message


def test_answer_that_went_on_elsewhere_is_told() -> None:
    steps = (("contracted", 1), ("first_token", 2), ("stream_lost", 500), ("continued", 900), ("paid", 3_000))
    assert "the answer went on there after 400 ms, at token 5" in found(trace(*steps))["continued"].message


def test_stream_that_did_not_come_back_is_told_when_the_job_failed() -> None:
    shown = trace(("contracted", 1), ("stream_lost", 500), ("failed", 900), state="failed", code="unreachable")
    assert list(found(shown)) == ["unreachable", "stream_lost"]


def test_refusals_of_one_peer_are_one_finding_with_their_number() -> None:
    shown = trace(("passed_over", 1), ("passed_over", 2), ("failed", 3), state="failed", code="no_capacity")
    answer = why_job(shown)
    end, refusal = answer.findings
    assert end.blocks and end.advice is not None and "try again later" in end.advice
    assert refusal.message == f"{PEER} was passed over (2 times): failed: it gave no reason"
    assert answer.summary == "The job (bought) ended as failed after 3 ms, with 40 tokens."


def test_provider_learns_that_its_customer_did_not_pay() -> None:
    shown = found(trace(("contracted", 1), ("paused_unpaid", 9), ("unpaid", 30), state="unpaid", role="provider"))
    assert shown.keys() == {"unpaid", "paused_unpaid"} and "did not pay" in shown["unpaid"].message
