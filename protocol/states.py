"""The life of a contract on each side, as tables (spec 07, whose pictures are drawn from these).

A refused event changes nothing. Every state that waits has a timer edge of its own, and no timer of one side
needs a message of the other.
"""

from enum import StrEnum
from typing import Final, TypeVar

from protocol.errors import LocalProtocolError, Reason


class ProviderState(StrEnum):
    IDLE = "idle"
    QUOTED = "quoted"
    FORMED = "formed"
    RUNNING = "running"
    PAUSED_UNPAID = "paused_unpaid"
    DETACHED = "detached"
    FINISHED = "finished"
    CLOSED = "closed"
    LAPSED = "lapsed"
    DECLINED = "declined"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNPAID = "unpaid"


class ProviderEvent(StrEnum):
    QUOTE_SENT = "quote_sent"
    HOLD_PASSED = "hold_passed"
    ACCEPT_SENT = "accept_sent"
    DECLINE_SENT = "decline_sent"
    OUTPUT_STARTED = "output_started"
    START_PASSED = "start_passed"
    CREDIT_USED_UP = "credit_used_up"
    VOUCHER_CAME = "voucher_came"
    VOUCHER_OVERDUE = "voucher_overdue"
    RECEIPT_SENT = "receipt_sent"
    CLOSING_CAME = "closing_came"
    CLOSING_OVERDUE = "closing_overdue"
    CANCEL_CAME = "cancel_came"
    STREAM_LOST = "stream_lost"
    STREAM_BACK = "stream_back"
    RESUME_OVERDUE = "resume_overdue"
    RULE_BROKEN = "rule_broken"
    JOB_FAILED = "job_failed"


class RequesterState(StrEnum):
    IDLE = "idle"
    ASKED = "asked"
    CHOSEN = "chosen"
    OFFERED = "offered"
    FORMED = "formed"
    STREAMING = "streaming"
    RESUMING = "resuming"
    VERIFYING = "verifying"
    CLOSED = "closed"
    DECLINED = "declined"
    LAPSED = "lapsed"
    LOST = "lost"
    CANCELLED = "cancelled"
    DISPUTED = "disputed"


class RequesterEvent(StrEnum):
    ASK_SENT = "ask_sent"
    QUOTE_CAME = "quote_came"
    OFFER_TAKEN = "offer_taken"
    CONTRACT_SENT = "contract_sent"
    ACCEPT_CAME = "accept_came"
    DECLINE_CAME = "decline_came"
    ANSWER_OVERDUE = "answer_overdue"
    OUTPUT_CAME = "output_came"
    RECEIPT_CAME = "receipt_came"
    RECEIPT_HOLDS = "receipt_holds"
    PROVIDER_SILENT = "provider_silent"
    STREAM_LOST = "stream_lost"
    STREAM_BACK = "stream_back"
    RESUME_FAILED = "resume_failed"
    RULE_BROKEN = "rule_broken"
    USER_CANCELLED = "user_cancelled"


_P, _PE = ProviderState, ProviderEvent
_R, _RE = RequesterState, RequesterEvent

PROVIDER_TRANSITIONS: Final[dict[tuple[ProviderState, ProviderEvent], ProviderState]] = {
    (_P.IDLE, _PE.QUOTE_SENT): _P.QUOTED,
    (_P.IDLE, _PE.ACCEPT_SENT): _P.FORMED,
    (_P.IDLE, _PE.DECLINE_SENT): _P.DECLINED,
    (_P.QUOTED, _PE.ACCEPT_SENT): _P.FORMED,
    (_P.QUOTED, _PE.DECLINE_SENT): _P.DECLINED,
    (_P.QUOTED, _PE.HOLD_PASSED): _P.LAPSED,
    (_P.FORMED, _PE.OUTPUT_STARTED): _P.RUNNING,
    (_P.FORMED, _PE.START_PASSED): _P.EXPIRED,
    (_P.FORMED, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.FORMED, _PE.STREAM_LOST): _P.DETACHED,
    (_P.FORMED, _PE.RULE_BROKEN): _P.CANCELLED,
    (_P.FORMED, _PE.JOB_FAILED): _P.FAILED,
    (_P.RUNNING, _PE.CREDIT_USED_UP): _P.PAUSED_UNPAID,
    (_P.RUNNING, _PE.RECEIPT_SENT): _P.FINISHED,
    (_P.RUNNING, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.RUNNING, _PE.STREAM_LOST): _P.DETACHED,
    (_P.RUNNING, _PE.RULE_BROKEN): _P.CANCELLED,
    (_P.RUNNING, _PE.JOB_FAILED): _P.FAILED,
    (_P.PAUSED_UNPAID, _PE.VOUCHER_CAME): _P.RUNNING,
    (_P.PAUSED_UNPAID, _PE.VOUCHER_OVERDUE): _P.UNPAID,
    (_P.PAUSED_UNPAID, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.PAUSED_UNPAID, _PE.STREAM_LOST): _P.DETACHED,
    (_P.PAUSED_UNPAID, _PE.RULE_BROKEN): _P.UNPAID,
    (_P.PAUSED_UNPAID, _PE.JOB_FAILED): _P.FAILED,
    # Whatever it was before: one that has to wait for a voucher pauses again at once.
    (_P.DETACHED, _PE.STREAM_BACK): _P.RUNNING,
    (_P.DETACHED, _PE.RESUME_OVERDUE): _P.CANCELLED,
    # Said before the stream was lost, and heard after it could not be spoken on.
    (_P.DETACHED, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.DETACHED, _PE.RULE_BROKEN): _P.CANCELLED,
    (_P.DETACHED, _PE.JOB_FAILED): _P.FAILED,
    (_P.FINISHED, _PE.CLOSING_CAME): _P.CLOSED,
    (_P.FINISHED, _PE.CLOSING_OVERDUE): _P.UNPAID,
    # After the receipt nothing is left to do but to hear the closing, over whichever stream: one that is lost
    # changes nothing. A cancel is a closing that will never come.
    (_P.FINISHED, _PE.CANCEL_CAME): _P.UNPAID,
    (_P.FINISHED, _PE.RULE_BROKEN): _P.UNPAID,
}

REQUESTER_TRANSITIONS: Final[dict[tuple[RequesterState, RequesterEvent], RequesterState]] = {
    (_R.IDLE, _RE.ASK_SENT): _R.ASKED,
    (_R.IDLE, _RE.OFFER_TAKEN): _R.CHOSEN,
    (_R.ASKED, _RE.QUOTE_CAME): _R.CHOSEN,
    (_R.ASKED, _RE.DECLINE_CAME): _R.DECLINED,
    (_R.ASKED, _RE.ANSWER_OVERDUE): _R.LAPSED,
    (_R.ASKED, _RE.STREAM_LOST): _R.LAPSED,
    (_R.ASKED, _RE.RULE_BROKEN): _R.LAPSED,
    (_R.ASKED, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.CHOSEN, _RE.CONTRACT_SENT): _R.OFFERED,
    (_R.OFFERED, _RE.ACCEPT_CAME): _R.FORMED,
    (_R.OFFERED, _RE.DECLINE_CAME): _R.DECLINED,
    (_R.OFFERED, _RE.ANSWER_OVERDUE): _R.LAPSED,
    (_R.OFFERED, _RE.STREAM_LOST): _R.LAPSED,
    (_R.OFFERED, _RE.RULE_BROKEN): _R.LAPSED,
    (_R.OFFERED, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.FORMED, _RE.OUTPUT_CAME): _R.STREAMING,
    (_R.FORMED, _RE.RECEIPT_CAME): _R.VERIFYING,
    (_R.FORMED, _RE.PROVIDER_SILENT): _R.RESUMING,
    (_R.FORMED, _RE.STREAM_LOST): _R.RESUMING,
    (_R.FORMED, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.FORMED, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.STREAMING, _RE.RECEIPT_CAME): _R.VERIFYING,
    (_R.STREAMING, _RE.PROVIDER_SILENT): _R.RESUMING,
    (_R.STREAMING, _RE.STREAM_LOST): _R.RESUMING,
    (_R.STREAMING, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.STREAMING, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.RESUMING, _RE.STREAM_BACK): _R.STREAMING,
    (_R.RESUMING, _RE.RESUME_FAILED): _R.LOST,
    (_R.RESUMING, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.RESUMING, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.VERIFYING, _RE.RECEIPT_HOLDS): _R.CLOSED,
    (_R.VERIFYING, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.VERIFYING, _RE.STREAM_LOST): _R.LOST,
    (_R.VERIFYING, _RE.USER_CANCELLED): _R.CANCELLED,
}

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def advance_provider(state: ProviderState, event: ProviderEvent) -> ProviderState:
    """Return the state after ``event``. Raises: LocalProtocolError (no such move; ``state`` still holds)."""
    return _advance(PROVIDER_TRANSITIONS, state, event)


def advance_requester(state: RequesterState, event: RequesterEvent) -> RequesterState:
    """Return the state after ``event``. Raises: LocalProtocolError (no such move; ``state`` still holds)."""
    return _advance(REQUESTER_TRANSITIONS, state, event)


def is_final(state: ProviderState | RequesterState) -> bool:
    """Return whether nothing leads out of ``state``."""
    if isinstance(state, ProviderState):
        return all(source is not state for source, _event in PROVIDER_TRANSITIONS)
    return all(source is not state for source, _event in REQUESTER_TRANSITIONS)


def interrupted(state: ProviderState | RequesterState) -> ProviderState | RequesterState:
    """Return where a stop of the node itself leaves an open contract: nothing of the work outlives it.

    A provider's job has failed by its own fault, so no debt stays with the requester, unless the receipt was out.
    """
    if isinstance(state, ProviderState):
        is_out = state is ProviderState.FINISHED
        return advance_provider(state, ProviderEvent.CLOSING_OVERDUE if is_out else ProviderEvent.JOB_FAILED)
    if state is not RequesterState.RESUMING:
        state = advance_requester(state, RequesterEvent.STREAM_LOST)
    return state if is_final(state) else advance_requester(state, RequesterEvent.RESUME_FAILED)


def _advance(table: dict[tuple[S, E], S], state: S, event: E) -> S:
    try:
        return table[state, event]
    except KeyError:
        raise LocalProtocolError(f"{event} is not allowed in state {state}", reason=Reason.ORDER) from None
