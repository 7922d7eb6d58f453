"""Silence ends every wait: derived from the tables and the names of their events, new states included.

An event is named after who causes it: ``…_came`` and ``stream_lost`` are the peer's, ``…_passed``, ``…_overdue``
and ``…_silent`` a timer's; a provider's ``job_failed`` is also the end of the job's time.
"""

from collections.abc import Callable
from enum import StrEnum

import pytest

from protocol.states import (
    PROVIDER_TRANSITIONS,
    REQUESTER_TRANSITIONS,
    ProviderEvent,
    ProviderState,
    RequesterEvent,
    RequesterState,
)

Table = dict[tuple[StrEnum, StrEnum], StrEnum]
TABLES: dict[type[StrEnum], Table] = {
    ProviderState: dict(PROVIDER_TRANSITIONS.items()),
    RequesterState: dict(REQUESTER_TRANSITIONS.items()),
}


def is_timer(event: StrEnum) -> bool:
    return event is ProviderEvent.JOB_FAILED or event.endswith(("_passed", "_overdue", "_silent"))


def waits(state: StrEnum) -> bool:
    """Return whether a message of the peer leads out of ``state``."""
    return any(source is state and event.endswith("_came") for source, event in TABLES[type(state)])


@pytest.mark.parametrize("state", [*ProviderState, *RequesterState], ids=str)
def test_state_that_waits_for_the_peer_comes_to_an_end_when_nothing_comes(
    state: ProviderState | RequesterState,
) -> None:
    if not waits(state):
        return
    seen: list[StrEnum] = []
    here: list[StrEnum] = [state]
    while here:
        source = here.pop()
        seen.append(source)
        if not waits(source):
            # An end, or own work: silence does not hold it.
            continue
        table = TABLES[type(state)]
        edges = [target for (start, event), target in table.items() if start is source and is_timer(event)]
        assert edges, f"{source} waits for a message and has no timer"
        assert not set(edges) & set(seen), f"timers lead in a circle from {source}"
        here += edges


def test_every_pair_of_state_and_event_is_decided(figure: Callable[[str, str], None]) -> None:
    for table, states, events in (
        (TABLES[ProviderState], ProviderState, ProviderEvent),
        (TABLES[RequesterState], RequesterState, RequesterEvent),
    ):
        pairs = {(state, event) for state in states for event in events}
        assert table.keys() <= pairs and set(table.values()) <= set(states)
        assert {event for _state, event in table} == set(events), "an event that no state takes"
        figure(
            f"states: {states.__name__}",
            f"{len(pairs)} pairs decided: {len(table)} moves, {len(pairs) - len(table)} refused;"
            f" {sum(map(waits, states))} states wait, each has a timer",
        )
