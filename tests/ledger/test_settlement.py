"""Statements are entries, what is settled comes with the second signature, and an audit derives it again."""

import sqlite3
from pathlib import Path

import pytest

from node.errors import LedgerError
from node.ledger.audit import audit_file
from node.ledger.entries import Entry
from node.ledger.rebuild import rebuild_file
from node.ledger.settlement import (
    NO_JOB,
    SettledRow,
    pair_books,
    settled_rows,
    settlement_envelopes,
    statements,
)
from node.ledger.store import LedgerStore
from protocol.settlement import verify_settlement_untrusted
from protocol.signed import Signed, SignedMessage
from protocol.statement import Statement, Sums
from protocol.units import Microcredits, PeerId, UnixMs
from scripts.spec import examples, settlements
from tests.ledger.jobs import entries_of, row_of, signed_job

US, THEM = examples.PROVIDER.peer_id, examples.REQUESTER.peer_id
OWED = row_of(signed_job(0)).vouchered
# Bounded by real vouchers: one job that the requester bought of us.
HISTORY = (Sums(second_promised=OWED, second_paid=5), Sums(second_promised=OWED, second_paid=9))


def entry(signed: Signed[SignedMessage], peer_id: PeerId = THEM) -> Entry:
    return Entry(
        envelope=signed.envelope, job_id=NO_JOB, peer_id=peer_id, contract_id=None, at_ms=UnixMs(examples.NOW_MS)
    )


def received(path: Path) -> list[tuple[int, int, int]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT number, received, paid FROM settled ORDER BY number").fetchall()
    db.close()
    return found


def change(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The first's ledger: one job sold, two payments acknowledged, two statements."""
    path = tmp_path / "ledger.db"
    store = LedgerStore(path)
    store.open()
    job = signed_job(0)
    store.write(entries_of(job), [row_of(job)])
    for signed in settlements.signed_chain(HISTORY):
        store.write([entry(signed)], [])
    store.close()
    return path


def test_row_is_written_with_the_second_signature_and_once(tmp_path: Path) -> None:
    store = LedgerStore(tmp_path / "ledger.db")
    store.open()
    settled, ours, theirs = settlements.signed_chain(HISTORY[:1])
    for signed, rows in ((settled, 0), (ours, 0), (ours, 0), (theirs, 1), (theirs, 1)):
        store.write([entry(signed)], [])
        assert len(settled_rows(store.db)) == rows
    made = ours.message
    assert isinstance(made, Statement)
    assert settled_rows(store.db) == {
        (THEM, 1): SettledRow(
            peer_id=THEM,
            number=1,
            received=Microcredits(5),
            paid=Microcredits(0),
            at_ms=UnixMs(made.made_at_ms),
        )
    }
    store.close()


def test_books_say_what_is_signed_by_both_and_what_waits(path: Path) -> None:
    store = LedgerStore(path)
    store.open()
    books = pair_books(store.db, US, THEM)
    assert (books.earned, books.promised, books.received, books.settled_by_us) == (OWED, 0, 9, 0)
    assert books.head.number == 2 and books.unfinished is None
    assert books.sums == HISTORY[-1]
    third = settlements.signed_chain((*HISTORY, Sums(second_promised=OWED, second_paid=11)))[-3:]
    store.write([entry(it) for it in third[:2]], [])
    books = pair_books(store.db, US, THEM)
    assert books.head.number == 2
    assert books.unfinished is not None and books.unfinished.message.number == 3
    newest = statements(store.db, THEM, 10)
    assert [(it.statement.number, it.is_signed_by_both) for it in newest] == [(3, False), (2, True), (1, True)]
    assert [it.statement.number for it in statements(store.db, None, 1)] == [3]
    assert statements(store.db, US, 10) == []
    found = settlement_envelopes(store.db, THEM)
    assert found is not None and verify_settlement_untrusted(found.encode()).last.number == 2
    assert settlement_envelopes(store.db, US) is None
    store.close()


def test_statement_that_was_altered_is_refused_with_what_to_do(path: Path) -> None:
    change(path, "UPDATE entry SET envelope = zeroblob(9) WHERE kind = 'statement'")
    with sqlite3.connect(path) as db, pytest.raises(LedgerError, match="souk ledger verify names it"):
        statements(db, None, 10)
    db.close()


ALTERED = {
    "a sum": ("UPDATE settled SET received = 10 WHERE number = 2", "row"),
    "a row is gone": ("DELETE FROM settled WHERE number = 1", "row"),
    "a row too many": ("INSERT INTO settled SELECT peer_id, 3, 90, 0, 0 FROM settled WHERE number = 1", "row"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_audit_names_what_the_statements_do_not_give_and_rebuild_mends_it(path: Path, name: str) -> None:
    assert audit_file(path, lambda: None).holds
    before = received(path)
    sql, field = ALTERED[name]
    change(path, sql)
    (found,) = audit_file(path, lambda: None).differences
    assert found.field == field and found.where.startswith("settled ")
    assert rebuild_file(path).changed == 1
    assert received(path) == before and audit_file(path, lambda: None).holds


def test_audit_names_a_statement_that_exceeds_the_vouchers(tmp_path: Path) -> None:
    store = LedgerStore(tmp_path / "ledger.db")
    store.open()
    job = signed_job(0)
    store.write(entries_of(job), [row_of(job)])
    too_much = settlements.signed_chain((Sums(second_promised=OWED + 1),))
    store.write([entry(it) for it in too_much], [])
    store.close()
    (found,) = audit_file(tmp_path / "ledger.db", lambda: None).differences
    assert (found.field, found.stored, found.expected) == ("promised by them", str(OWED + 1), f"at most {OWED}")


@pytest.mark.parametrize("name", ["a gap in the numbers", "netted too much", "second signature by a stranger"])
def test_audit_names_a_chain_that_breaks(tmp_path: Path, name: str) -> None:
    store = LedgerStore(tmp_path / "ledger.db")
    store.open()
    chain = settlements.CHANGES[name](settlements.signed_chain())
    store.write([entry(it) for it in chain], [])
    store.close()
    found = audit_file(tmp_path / "ledger.db", lambda: None).differences
    assert any(it.where.startswith("entry ") and it.field == "statement" for it in found)
