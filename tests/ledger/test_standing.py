"""What a ledger says is open with a peer when a node starts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from node.ledger.entries import ContractRow, Entry
from node.ledger.standing import Standing, standings
from node.ledger.store import LedgerStore
from protocol.envelope import seal
from protocol.receipt import Closing
from protocol.signed import sign
from protocol.states import ProviderState, RequesterState
from protocol.units import Microcredits, PeerId, UnixMs
from scripts.spec import examples
from tests.fakes import signer_of
from tests.ledger.fakes import JOB, NETWORK, PEER, contract_id, row
from tests.ledger.jobs import contract_of, entries_of, row_of, signed_job

HOUR_MS = 3_600_000
NOW_MS = UnixMs(100 * 24 * HOUR_MS + 7)
OTHER = signer_of("other").peer_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LedgerStore]:
    store = LedgerStore(tmp_path / "ledger.db")
    store.open()
    yield store
    store.close()


def aged(
    number: int, state: ProviderState | RequesterState, hours: float, *, metered: int, vouchered: int
) -> ContractRow:
    return replace(
        row(number, state, metered=metered, vouchered=vouchered), at_ms=UnixMs(NOW_MS - round(hours * HOUR_MS))
    )


def closing(number: int, verdict: str) -> Entry:
    body = {"contract_id": contract_id(number), "receipt_id": bytes(32), "verdict": verdict, "cumulative": 1}
    return Entry(
        envelope=seal("closing", body, network=NETWORK, signer=signer_of("me")),  # type: ignore[arg-type]  # plain
        job_id=JOB,
        peer_id=PEER,
        contract_id=contract_id(number),
        at_ms=NOW_MS,
    )


def standing(settled: int = 0, paid: int = 0, *owed: tuple[int, int]) -> Standing:
    return Standing(
        settled=Microcredits(settled),
        paid=Microcredits(paid),
        owed=tuple((UnixMs(at_ms), Microcredits(amount)) for at_ms, amount in owed),
    )


def test_promises_and_what_was_never_promised_are_both_open_and_a_failure_of_ours_leaves_promises(
    store: LedgerStore,
) -> None:
    store.write(
        [],
        [
            aged(1, ProviderState.CLOSED, 0, metered=10, vouchered=10),
            aged(2, ProviderState.UNPAID, 0, metered=7, vouchered=4),
            aged(3, ProviderState.FAILED, 0, metered=500, vouchered=20),
        ],
    )
    assert standings(store.db, NOW_MS, 1).sold == {PEER: standing(0, 0, (NOW_MS - 7, 10 + 7 + 20))}


def test_newest_settlement_says_what_was_received_of_a_peer(store: LedgerStore) -> None:
    store.write([], [aged(1, ProviderState.CLOSED, 0, metered=10, vouchered=10)])
    rows = [(PEER, 1, 4, 0, 1), (PEER, 2, 9, 3, 2), (OTHER, 1, 5, 0, 3)]
    store.db.executemany("INSERT INTO settled VALUES (?, ?, ?, ?, ?)", rows)
    found = standings(store.db, NOW_MS, 1).sold
    assert found == {PEER: standing(9, 9, (NOW_MS - 7, 10)), OTHER: standing(5, 5)}


def test_ledger_of_an_older_program_has_settled_nothing(store: LedgerStore) -> None:
    store.db.execute("DROP TABLE settled")
    store.write([], [aged(1, ProviderState.CLOSED, 0, metered=10, vouchered=10)])
    assert standings(store.db, NOW_MS, 1).sold == {PEER: standing(0, 0, (NOW_MS - 7, 10))}


@pytest.mark.parametrize(("days", "hours_shown"), [(1, [0, 0, 20]), (3, [0, 20, 60]), (0, [0, 0, 0])])
def test_debts_are_told_by_the_hour_and_in_one_sum_when_too_old_to_count(
    store: LedgerStore, days: int, hours_shown: list[int]
) -> None:
    for number, hours in enumerate((100, 60, 20)):
        store.write([], [aged(number, ProviderState.CLOSED, hours, metered=1, vouchered=1)])
    (found,) = standings(store.db, NOW_MS, days).sold.values()
    told = sorted((at_ms for at_ms, amount in found.owed for _ in range(amount)), reverse=True)
    shown = [NOW_MS - 7 - hours * HOUR_MS if hours else 0 for hours in hours_shown]
    assert sorted(told) == sorted(shown)


def test_only_promises_for_answers_closed_as_ok_prove_a_provider(store: LedgerStore) -> None:
    states = (RequesterState.CLOSED, RequesterState.CLOSED, RequesterState.CLOSED, RequesterState.LOST)
    store.write(
        [closing(1, "ok"), closing(2, "partial"), closing(4, "ok")],
        [
            aged(number, state, 0, metered=10**number, vouchered=10**number)
            for number, state in enumerate(states, 1)
        ],
    )
    found = standings(store.db, NOW_MS, 1)
    assert found.sold == {}
    assert found.bought[PEER].settled == 10 and found.bought[PEER].paid == 0
    assert sum(amount for _at_ms, amount in found.bought[PEER].owed) == 100 + 1_000 + 10_000


@pytest.mark.parametrize("verdict", ["ok", "partial"])
def test_verdict_is_found_in_a_closing_as_the_market_signs_it(store: LedgerStore, verdict: str) -> None:
    job = signed_job(1)
    last = job[-1].message
    assert isinstance(last, Closing)
    entries = entries_of(job, "requester")
    judged = structs.replace(last, verdict=verdict)
    signed = sign(judged, network=examples.NETWORK, signer=examples.REQUESTER)
    entries[-1] = replace(entries[-1], envelope=signed.envelope)
    made = row_of(job, "requester")
    store.write(entries, [made])
    assert made.contract_id == contract_of(job)
    found = standings(store.db, NOW_MS, 0).bought[PeerId(examples.PROVIDER.peer_id)]
    promised = made.vouchered
    assert (found.settled, sum(it[1] for it in found.owed)) == (
        (promised, 0) if verdict == "ok" else (0, promised)
    )
