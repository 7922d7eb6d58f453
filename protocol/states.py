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
    JOB_FAILED = "job_failed"


class RequesterState(StrEnum):
    IDLE = "idle"
    ASKED = "asked"
    CHOSEN = "chosen"
    OFFERED = "offered"
    FORMED = "formed"
    STREAMING = "streaming"
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
    (_P.FORMED, _PE.STREAM_LOST): _P.CANCELLED,
    (_P.FORMED, _PE.JOB_FAILED): _P.FAILED,
    (_P.RUNNING, _PE.CREDIT_USED_UP): _P.PAUSED_UNPAID,
    (_P.RUNNING, _PE.RECEIPT_SENT): _P.FINISHED,
    (_P.RUNNING, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.RUNNING, _PE.STREAM_LOST): _P.CANCELLED,
    (_P.RUNNING, _PE.JOB_FAILED): _P.FAILED,
    (_P.PAUSED_UNPAID, _PE.VOUCHER_CAME): _P.RUNNING,
    (_P.PAUSED_UNPAID, _PE.VOUCHER_OVERDUE): _P.UNPAID,
    (_P.PAUSED_UNPAID, _PE.CANCEL_CAME): _P.CANCELLED,
    (_P.PAUSED_UNPAID, _PE.STREAM_LOST): _P.UNPAID,
    (_P.PAUSED_UNPAID, _PE.JOB_FAILED): _P.FAILED,
    (_P.FINISHED, _PE.CLOSING_CAME): _P.CLOSED,
    (_P.FINISHED, _PE.CLOSING_OVERDUE): _P.UNPAID,
    # After the receipt a lost stream or a cancel is a closing that never came: at most the credit is open.
    (_P.FINISHED, _PE.STREAM_LOST): _P.UNPAID,
    (_P.FINISHED, _PE.CANCEL_CAME): _P.UNPAID,
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
    (_R.FORMED, _RE.PROVIDER_SILENT): _R.LOST,
    (_R.FORMED, _RE.STREAM_LOST): _R.LOST,
    (_R.FORMED, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.FORMED, _RE.USER_CANCELLED): _R.CANCELLED,
    (_R.STREAMING, _RE.RECEIPT_CAME): _R.VERIFYING,
    (_R.STREAMING, _RE.PROVIDER_SILENT): _R.LOST,
    (_R.STREAMING, _RE.STREAM_LOST): _R.LOST,
    (_R.STREAMING, _RE.RULE_BROKEN): _R.DISPUTED,
    (_R.STREAMING, _RE.USER_CANCELLED): _R.CANCELLED,
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


def _advance(table: dict[tuple[S, E], S], state: S, event: E) -> S:
    try:
        return table[state, event]
    except KeyError:
        raise LocalProtocolError(f"{event} is not allowed in state {state}", reason=Reason.ORDER) from None
