from enum import StrEnum
from itertools import product

import pytest

from protocol.errors import LocalProtocolError, Reason
from protocol.states import (
    PROVIDER_TRANSITIONS,
    REQUESTER_TRANSITIONS,
    ProviderEvent,
    ProviderState,
    RequesterEvent,
    RequesterState,
    advance_provider,
    advance_requester,
    is_final,
)
from scripts.spec import pictures

TIMERS = {
    ProviderState.QUOTED: ProviderEvent.HOLD_PASSED,
    ProviderState.FORMED: ProviderEvent.START_PASSED,
    # A running job ends by its own deadline as a failed one.
    ProviderState.RUNNING: ProviderEvent.JOB_FAILED,
    ProviderState.PAUSED_UNPAID: ProviderEvent.VOUCHER_OVERDUE,
    ProviderState.DETACHED: ProviderEvent.RESUME_OVERDUE,
    ProviderState.FINISHED: ProviderEvent.CLOSING_OVERDUE,
    RequesterState.ASKED: RequesterEvent.ANSWER_OVERDUE,
    RequesterState.OFFERED: RequesterEvent.ANSWER_OVERDUE,
    RequesterState.FORMED: RequesterEvent.PROVIDER_SILENT,
    RequesterState.STREAMING: RequesterEvent.PROVIDER_SILENT,
    RequesterState.RESUMING: RequesterEvent.RESUME_FAILED,
}
# Not waiting for a peer: own work decides when the next event comes.
WITHOUT_TIMER = {ProviderState.IDLE, RequesterState.IDLE, RequesterState.CHOSEN, RequesterState.VERIFYING}


@pytest.mark.parametrize(("state", "event"), list(product(ProviderState, ProviderEvent)), ids=str)
def test_provider_decides_every_event_in_every_state(state: ProviderState, event: ProviderEvent) -> None:
    if (state, event) in PROVIDER_TRANSITIONS:
        assert advance_provider(state, event) is PROVIDER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError) as caught:
            advance_provider(state, event)
        assert caught.value.reason is Reason.ORDER


@pytest.mark.parametrize(("state", "event"), list(product(RequesterState, RequesterEvent)), ids=str)
def test_requester_decides_every_event_in_every_state(state: RequesterState, event: RequesterEvent) -> None:
    if (state, event) in REQUESTER_TRANSITIONS:
        assert advance_requester(state, event) is REQUESTER_TRANSITIONS[state, event]
    else:
        with pytest.raises(LocalProtocolError) as caught:
            advance_requester(state, event)
        assert caught.value.reason is Reason.ORDER


@pytest.mark.parametrize("state", [*ProviderState, *RequesterState], ids=str)
def test_every_waiting_state_has_a_timer_of_its_own(state: ProviderState | RequesterState) -> None:
    if is_final(state) or state in WITHOUT_TIMER:
        assert state not in TIMERS
    else:
        pairs: set[tuple[StrEnum, StrEnum]] = {*PROVIDER_TRANSITIONS, *REQUESTER_TRANSITIONS}
        assert (state, TIMERS[state]) in pairs


@pytest.mark.parametrize(
    ("table", "first"),
    [(PROVIDER_TRANSITIONS, ProviderState.IDLE), (REQUESTER_TRANSITIONS, RequesterState.IDLE)],
    ids=["provider", "requester"],
)
def test_every_state_is_reached_and_comes_to_an_end(
    table: dict[tuple[StrEnum, StrEnum], StrEnum], first: StrEnum
) -> None:
    reached = {first}
    while more := {target for (source, _), target in table.items() if source in reached} - reached:
        reached |= more
    assert reached == set(type(first))
    ending = {state for state in type(first) if all(source is not state for source, _ in table)}
    while more := {source for (source, _), target in table.items() if target in ending} - ending:
        ending |= more
    assert ending == set(type(first))


def test_pictures_in_the_specification_are_those_of_the_tables() -> None:
    assert pictures.SPEC.read_text("utf-8") == pictures.drawn(pictures.SPEC.read_text("utf-8")), (
        "run scripts/draw_states"
    )
