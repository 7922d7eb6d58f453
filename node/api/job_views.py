"""What the control API shows of jobs: their list, one timeline, and why; made from the market's journal."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from node.api.views import JobView, View
from node.market.journal import JobRecord, Step
from node.market.order import PassedOver
from node.market.quotes import Offered, QuoteReply
from protocol.identity import peer_id_to_text
from protocol.limits import TOKENS_MAX
from protocol.units import PeerId

_ROLE: Final = "(requester|provider|local)"


class StepView(View, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a job's timeline; what it does not tell is left out."""

    step: str
    at_ms: int
    peer_id: str | None = None
    contract_id: str | None = None
    code: str | None = None
    message: str | None = None
    peers: int | None = None
    price_max_microcredits: int | None = None
    cost_microcredits: int | None = None
    queue_ms: int | None = None
    retry_after_ms: int | None = None
    tokens_out: int | None = None


class JobTrace(View, frozen=True, kw_only=True):
    """One job with its timeline."""

    schema: int = 1
    job: JobView
    timeline: tuple[StepView, ...]
    steps_left_out: int = 0
    """How many are missing from the middle of a timeline that grew too long."""
    is_restored: bool = False
    """The job was over before the daemon's start: of its steps only those are left that signed messages prove."""


class JobEvent(View, frozen=True, kw_only=True):
    """A job and its new step, as ``/api/v1/jobs/events`` tells it."""

    job: JobView
    step: StepView | None
    """Null where the job has ended, and its last step was told already."""


class Finding(View, frozen=True, kw_only=True):
    """One reason, in a sentence, and what to do about it where something can be done."""

    about: Literal["serve", "buy", "job"]
    code: str
    blocks: bool
    """Whether it alone is enough; otherwise it is worth knowing."""
    message: str
    advice: str | None = None


class WhyNodeAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    can_serve: bool
    can_buy: bool
    findings: tuple[Finding, ...]


class WhyJobAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    job_id: str
    state: str
    summary: str
    findings: tuple[Finding, ...]


class CancelAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    job: JobView


class JobsQuery(msgspec.Struct, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    role: Annotated[str, Meta(pattern=f"^{_ROLE}(,{_ROLE})*$", max_length=64)] = "requester,provider,local"
    """Some of three, with commas."""
    state: Annotated[str, Meta(max_length=32)] | None = None
    """``open``, ``over`` or the name of one."""


class QuoteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt_tokens: Annotated[int, Meta(ge=1, le=TOKENS_MAX)] = 1_000
    max_tokens: Annotated[int, Meta(ge=1, le=TOKENS_MAX)] = 512


class QuoteView(View, frozen=True, kw_only=True):
    """What one peer says to an ask: its terms, or ``code`` and ``message`` of its refusal."""

    peer_id: str
    price_max_microcredits: int | None = None
    price_in: int | None = None
    price_out: int | None = None
    first_token_ms: int | None = None
    memory_bytes: int | None = None
    """What the job would take of the provider's device; None where the provider does not say."""
    hold_ms: int | None = None
    code: str | None = None
    message: str | None = None


class QuotesAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    model: str
    quotes: tuple[QuoteView, ...]


def job_view(record: JobRecord, *, tokens_out: int | None = None) -> JobView:
    """Return a record in the form of the API; ``tokens_out`` is what is known better of one that runs."""
    first_at = record.first_token_at_ms
    return JobView(
        job_id=record.job_id.hex(),
        contract_id=None if record.contract_id is None else record.contract_id.hex(),
        role="provider" if record.role == "worker" else record.role,
        peer_id=_text(record.peer_id),
        model=record.model,
        state=record.state,
        tokens_in=record.tokens_in,
        tokens_out=record.tokens_out if tokens_out is None else tokens_out,
        cost_microcredits=record.cost_microcredits,
        energy_millijoules=record.energy_millijoules,
        started_ms=record.started_ms,
        first_token_ms=None if first_at is None else first_at - record.started_ms,
        ended_ms=record.ended_ms,
        code=record.code,
        message=record.message,
    )


def job_trace(record: JobRecord, *, tokens_out: int | None = None) -> JobTrace:
    """Return a record with its timeline in the form of the API."""
    return JobTrace(
        job=job_view(record, tokens_out=tokens_out),
        timeline=tuple(_step(step) for step in record.steps),
        steps_left_out=record.steps_left_out,
        is_restored=record.is_restored,
    )


def job_event(record: JobRecord, step: Step | None) -> JobEvent:
    """Return where a job has come with ``step``; None: to its end."""
    return JobEvent(job=job_view(record), step=None if step is None else _step(step))


def quote_view(reply: QuoteReply) -> QuoteView:
    """Return what a peer said to an ask in the form of the API."""
    peer = peer_id_to_text(reply.peer_id)
    match reply:
        case Offered():
            return QuoteView(
                peer_id=peer,
                price_max_microcredits=reply.price_max_microcredits,
                price_in=reply.prices.tokens_in,
                price_out=reply.prices.tokens_out,
                first_token_ms=reply.first_token_ms,
                memory_bytes=reply.memory_bytes,
                hold_ms=reply.hold_ms,
            )
        case PassedOver():
            return QuoteView(peer_id=peer, code=str(reply.code), message=reply.message)


def _step(step: Step) -> StepView:
    return StepView(
        step=step.name,
        at_ms=step.at_ms,
        peer_id=_text(step.peer_id),
        contract_id=None if step.contract_id is None else step.contract_id.hex(),
        code=step.code,
        message=step.message,
        peers=step.peers,
        price_max_microcredits=step.price_max_microcredits,
        cost_microcredits=step.cost_microcredits,
        queue_ms=step.queue_ms,
        retry_after_ms=step.retry_after_ms,
        tokens_out=step.tokens_out,
    )


def _text(peer_id: PeerId | None) -> str | None:
    return None if peer_id is None else peer_id_to_text(peer_id)
