"""An audit names what was altered, by anybody, in anything that somebody signed; and it alters nothing itself."""

import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from node.errors import LedgerError
from node.ledger.audit import DIFFERENCES_MAX, Audit, audit_file, read_only
from node.ledger.entries import Role
from node.ledger.ledger import Ledger
from node.ledger.store import LedgerStore
from tests.ledger.fakes import entry
from tests.ledger.jobs import contract_of, entries_of, row_of, signed_job

JOBS = [signed_job(number) for number in range(3)]


def no_pause() -> None:
    return


def audited(path: Path) -> Audit:
    return audit_file(path, no_pause)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of three closed jobs, two sold and one bought."""
    made = tmp_path / "ledger.db"
    store = LedgerStore(made)
    store.open()
    for number, job in enumerate(JOBS):
        role: Role = "requester" if number == 2 else "provider"
        store.write(entries_of(job, role), [row_of(job, role)])
    store.close()
    return made


def alter(path: Path, change: str, *values: object) -> None:
    with sqlite3.connect(path) as db:
        db.execute(change, values)
    db.close()


def test_audit_holds_when_nothing_was_altered(path: Path) -> None:
    before = path.read_bytes()
    found = audited(path)
    assert found.holds and found.differences == ()
    assert (found.entries, found.contracts, found.proofs) == (27, 3, 0)
    assert path.read_bytes() == before


SIGNED_FIELDS = {
    "job_id": b"x" * 16,
    "peer_id": b"x" * 32,
    "model_id": b"x" * 32,
    "role": "requester",
    "tokens_in": 24,
    "tokens_out": 9,
    "metered": 1,
    "vouchered": 1,
    "at_ms": 1,
}


@pytest.mark.parametrize("field", SIGNED_FIELDS)
def test_audit_names_the_contract_and_field_when_a_row_says_what_nobody_signed(path: Path, field: str) -> None:
    name = contract_of(JOBS[0])
    alter(path, f"UPDATE contract SET {field} = ? WHERE contract_id = ?", SIGNED_FIELDS[field], name)
    found = audited(path)
    assert not found.holds
    assert [(it.where, it.field) for it in found.differences] == [(f"contract {name.hex()}", field)]


def test_audit_names_a_row_that_is_closed_without_a_closing(path: Path) -> None:
    store = LedgerStore(path)
    store.open()
    job = signed_job(9)
    store.write(entries_of(job)[:-1], [row_of(job)])
    store.close()
    assert [it.field for it in audited(path).differences] == ["state"]


def test_audit_names_what_is_missing_when_rows_and_messages_do_not_match(path: Path) -> None:
    alter(path, "DELETE FROM contract WHERE contract_id = ?", contract_of(JOBS[1]))
    assert [(it.field, it.stored) for it in audited(path).differences] == [("row", "missing")]
    alter(path, "DELETE FROM entry WHERE contract_id = ?", contract_of(JOBS[0]))
    assert {it.field for it in audited(path).differences} == {"row", "hash", "messages"}


# Each with what an attacker has to do to hide it from the hash chain: nothing helps against the signatures.
@pytest.mark.parametrize("column", ["message_id", "kind", "job_id", "peer_id", "signer", "envelope"])
def test_audit_names_the_entry_when_a_column_of_it_was_altered(path: Path, column: str) -> None:
    value = "receipt" if column == "kind" else b"y" * 32
    alter(path, f"UPDATE entry SET {column} = ? WHERE seq = 4", value)
    rechain(path)
    found = audited(path).differences
    assert any(it.where == "entry 4" and it.field == column for it in found), found
    assert not any(it.field == "hash" for it in found)


def rechain(path: Path) -> None:
    with sqlite3.connect(path) as db:
        link = bytes(32)
        for seq, message_id, raw in db.execute(
            "SELECT seq, message_id, envelope FROM entry ORDER BY seq"
        ).fetchall():
            link = sha256(link + message_id + sha256(raw).digest()).digest()
            db.execute("UPDATE entry SET hash = ? WHERE seq = ?", (link, seq))
    db.close()


def test_audit_names_one_entry_when_one_link_of_the_chain_is_broken(path: Path) -> None:
    alter(path, "UPDATE entry SET hash = zeroblob(32) WHERE seq = 5")
    assert [(it.where, it.field) for it in audited(path).differences] == [("entry 5", "hash"), ("entry 6", "hash")]


def test_audit_names_the_signature_when_one_bit_of_an_envelope_is_another(path: Path) -> None:
    raw = bytearray(entries_of(JOBS[0])[3].envelope.raw)
    raw[-1] ^= 1
    alter(path, "UPDATE entry SET envelope = ? WHERE seq = 4", bytes(raw))
    rechain(path)
    (first, *_rest) = audited(path).differences
    assert (first.where, first.field) == ("entry 4", "envelope") and "signature" in first.stored


def test_audit_keeps_a_bounded_list_when_everything_is_wrong(path: Path) -> None:
    store = LedgerStore(path)
    store.open()
    store.write([entry(number, contract=number) for number in range(1_200)], [])
    store.close()
    found = audited(path)
    assert len(found.differences) == DIFFERENCES_MAX < found.differences_total


def test_audit_tells_of_damaged_pages_when_the_file_was_overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 4096)
    found = audited(path)
    assert not found.holds and found.differences[0].where == "database"


def test_audit_refuses_what_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        audited(tmp_path / "ledger.db")
    (tmp_path / "ledger.db").write_bytes(b"x" * 9_000)
    with pytest.raises(LedgerError, match=r"cannot be read as a ledger.*put a backup"):
        audited(tmp_path / "ledger.db")


def test_reader_of_a_ledger_cannot_write(path: Path) -> None:
    with pytest.raises(LedgerError, match="readonly"), read_only(path) as db:
        db.execute("DELETE FROM contract")


def test_audit_ends_early_when_its_caller_has_had_enough(path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit_file(path, stop)


async def test_audit_beside_a_running_ledger_sees_what_was_posted(path: Path, nursery: trio.Nursery) -> None:
    ledger = Ledger(path)
    await nursery.start(ledger.run)
    job = signed_job(5)
    await ledger.post(*entries_of(job), row=row_of(job))
    found = await ledger.audit()
    assert found.holds and found.contracts == 4
