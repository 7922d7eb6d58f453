"""Why a job was slow, passed over or failed: sentences from its timeline, each with what to do.

A pure function of what the API shows, so that the CLI and the dashboard say the same.
"""

from collections.abc import Iterator
from typing import Final

from node.api.job_views import Finding, JobTrace, StepView, WhyJobAnswer
from node.api.views import JobView

SLOW_MS: Final = 2_000
"""A person begins to wonder."""
PEER_CHARS: Final = 8

# What peers answer, and how they fail: DeclineCode and PeerFault of the market.
_ADVICE: Final = {
    "busy": "try again in a moment; more peers with the model would help",
    "price": "raise --max-price or market.price_max, or look for a lower price: souk quote MODEL",
    "credit": "settle what is open with it: souk ledger settle PEER",
    "spend_limit": "raise market.spend_new_peer or market.spend_pool_new, or wait until it has served you well",
    "context_exceeded": "shorten the prompt, or ask for fewer tokens with --max-tokens",
    "memory": "others hold its device's memory; another peer, fewer tokens with --max-tokens, or later",
    "model_unknown": "its advert is older than what it serves; souk models shows what there is now",
    "expired": "the answer came too late, or the clocks differ: souk doctor checks this one",
    "draining": "its owner keeps peers out now; others will be asked",
    "unreachable": "it is gone, or a firewall is between you: souk peers shows who is connected",
    "silent": "it took too long; it comes last until it says something new",
    "broke_protocol": "it broke the rules and was left; its messages are kept: souk receipts proofs",
    "input": "it refuses the prompt as it is: souk doctor checks this installation against its",
    "profile": "it computes in another type than the answer so far",
    "task_unknown": "it cannot do this kind of work",
    "failed": "a fault of that peer; nothing to do here",
}
# How an order fails: the codes of OrderError.
_ENDS: Final = {
    "model_not_found": "souk models lists what the network has; the name has to be exact",
    "no_capacity": "see what each peer said; try again later, or allow more: --max-price, --deadline",
    "deadline": "allow more time: --deadline 20m; or fewer tokens: --max-tokens",
    "context_length_exceeded": "shorten the prompt, or ask for fewer tokens with --max-tokens",
    "input_refused": "the message has the provider's reason: correct the prompt, or use another model",
    "ledger": "nothing is bought that cannot be written down: souk status says what is wrong with the disk",
    "out_of_memory": "the device was full: shorten the prompt, or lower worker.slots",
    "worker_died": "the worker was started anew: try again; souk doctor checks the device",
    "worker_fault": "the worker was started anew: its traceback stands in the log of the daemon",
    "worker_hung": "the worker was started anew: is the machine overloaded? souk doctor checks the device",
    "worker_memory": "memory did not suffice: lower worker.slots, worker.memory_percent or what else runs there",
    "not_finite": "what the model computed is no number: souk models verify checks its files",
    "device_fault": "the device failed, and another worker was started: souk doctor, and the log of the kernel",
}


def why_job(trace: JobTrace) -> WhyJobAnswer:
    """Return what there is to say about one job, the main thing first."""
    job = trace.job
    return WhyJobAnswer(
        job_id=job.job_id,
        state=job.state,
        summary=_summary(trace),
        findings=(
            *_restored(trace),
            *_end(job),
            *_refusals(trace),
            *_losses(trace),
            *_waits(trace),
            *_payments(trace),
        ),
    )


def _restored(trace: JobTrace) -> Iterator[Finding]:
    if trace.is_restored:
        message = "it was over before the daemon's start: what stood in its way is lost"
        yield Finding(about="job", code="restored", blocks=False, message=message)


def _summary(trace: JobTrace) -> str:
    job = trace.job
    who = {"requester": "bought", "provider": "sold", "local": "run here"}[job.role]
    tokens = f"{job.tokens_out} tokens"
    if job.ended_ms is None:
        last = trace.timeline[-1].step.replace("_", " ") if trace.timeline else "just begun"
        return f"The job ({who}) is open, {tokens} so far; the last step: {last}."
    took = _seconds(job.ended_ms - job.started_ms)
    if job.state == "closed":
        first = "" if job.first_token_ms is None else f", the first after {_seconds(job.first_token_ms)}"
        cost = "" if job.role == "local" else f", for {job.cost_microcredits:,} µc"
        return f"The job ({who}) went well: {tokens} in {took}{first}{cost}."
    return f"The job ({who}) ended as {job.state} after {took}, with {tokens}."


def _end(job: JobView) -> Iterator[Finding]:
    if job.ended_ms is None or job.state == "closed":
        return
    code = job.code or job.state
    message = job.message or _plain_end(job)
    yield Finding(
        about="job", code=code, blocks=True, message=message, advice=_ENDS.get(code) or _ADVICE.get(code)
    )


def _plain_end(job: JobView) -> str:
    match job.role, job.state:
        case "provider", "cancelled":
            return "the requester cancelled it, left, or broke a rule"
        case "provider", "unpaid":
            return "the requester did not pay all that was metered: its limit here shrinks by that"
        case "provider", "expired":
            return "the first token was not there in the time that the contract gives"
        case "provider", _:
            return "this node could not finish it; its log says why"
        case _, "cancelled":
            return "whoever asked for it left before the end, or this node was stopped"
        case _:
            return "it ended before the answer was complete"


def _refusals(trace: JobTrace) -> Iterator[Finding]:
    """One finding for each peer and code: a busy one may have been asked many times."""
    seen: dict[tuple[str | None, str], list[StepView]] = {}
    for step in trace.timeline:
        if step.step == "passed_over":
            seen.setdefault((step.peer_id, step.code or "failed"), []).append(step)
    for (peer_id, code), steps in seen.items():
        times = f" ({len(steps)} times)" if len(steps) > 1 else ""
        said = steps[-1].message or "it gave no reason"
        yield Finding(
            about="job",
            code=code,
            blocks=False,
            message=f"{_short(peer_id)} was passed over{times}: {code}: {said}",
            advice=_ADVICE.get(code),
        )


def _losses(trace: JobTrace) -> Iterator[Finding]:
    lost: StepView | None = None
    for step in trace.timeline:
        if step.step == "stream_lost":
            lost = step
        elif step.step in ("stream_back", "continued"):
            since = "" if lost is None else f" after {_seconds(step.at_ms - lost.at_ms)}"
            what = (
                "its stream was lost and came back" if step.step == "stream_back" else "the answer went on there"
            )
            yield Finding(
                about="job",
                code=step.step,
                blocks=False,
                message=f"{_short(step.peer_id)}: {what}{since}, at token {step.tokens_out or 0}; none is missing",
            )
            lost = None
    if lost is not None and trace.job.state != "closed":
        yield Finding(
            about="job",
            code="stream_lost",
            blocks=False,
            message=f"{_short(lost.peer_id)}: the stream was lost at token {lost.tokens_out or 0}",
            advice=_ADVICE["unreachable"],
        )


def _waits(trace: JobTrace) -> Iterator[Finding]:
    """Say where the time before the first token went, if it was long."""
    contracted = next((it for it in trace.timeline if it.step == "contracted"), None)
    if contracted is None:
        return
    looked_ms = contracted.at_ms - trace.job.started_ms
    if looked_ms >= SLOW_MS:
        message = f"{_seconds(looked_ms)} went by before a contract stood"
        advice = "peers that refuse or do not answer are asked one after the other: see above"
        yield Finding(about="job", code="slow_contract", blocks=False, message=message, advice=advice)
    first = next((it for it in trace.timeline if it.step == "first_token"), None)
    if first is not None and first.at_ms - contracted.at_ms >= SLOW_MS:
        message = f"{_seconds(first.at_ms - contracted.at_ms)} from the contract to the first token"
        advice = "it waited for a slot, or the prompt is long for the device; souk peers shows queues and speeds"
        yield Finding(about="job", code="slow_first_token", blocks=False, message=message, advice=advice)


def _payments(trace: JobTrace) -> Iterator[Finding]:
    pauses = sum(step.step == "paused_unpaid" for step in trace.timeline)
    if pauses:
        yield Finding(
            about="job",
            code="paused_unpaid",
            blocks=False,
            message=f"work stood still {pauses} times until the requester's voucher was there",
            advice="a larger market.credit_new_peer lets strangers run further ahead of their vouchers",
        )


def _seconds(ms: int) -> str:
    return f"{ms} ms" if ms < 1_000 else f"{ms / 1_000:.1f} s"


def _short(peer_id: str | None) -> str:
    return "a peer" if peer_id is None else f"…{peer_id[-PEER_CHARS:]}"
