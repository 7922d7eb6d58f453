"""An older ledger is copied, then brought up to date; a damaged one is refused as it is."""

import sqlite3
from pathlib import Path

import pytest

from node.errors import LedgerError
from node.ledger import store as store_module
from node.ledger.audit import audit_file
from node.ledger.schema import MIGRATIONS
from node.ledger.store import LedgerStore
from scripts.spec import examples, proofs
from tests.ledger.jobs import entries_of, row_of, signed_job


def opened(path: Path) -> LedgerStore:
    store = LedgerStore(path)
    store.open()
    return store


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as db:
        found = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    db.close()
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger as the first release wrote it, with one job."""
    path, job = tmp_path / "ledger.db", signed_job(1)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(MIGRATIONS[0])
        db.execute("PRAGMA user_version=1")
    db.close()
    # Today's program writes one column more; the rest of an entry has not changed.
    newer = opened(tmp_path / "newer.db")
    newer.write(entries_of(job), [row_of(job)])
    newer.close()
    columns = "seq, message_id, kind, job_id, contract_id, peer_id, signer, at_ms, envelope, hash"
    with sqlite3.connect(path) as db:
        db.execute("ATTACH ? AS newer", (str(tmp_path / "newer.db"),))
        db.execute(f"INSERT INTO entry SELECT {columns} FROM newer.entry")
        names = ", ".join(name for _, name, *_ in db.execute("PRAGMA main.table_info(contract)"))
        db.execute(f"INSERT INTO contract SELECT {names} FROM newer.contract")
    db.close()
    return path


def test_old_ledger_is_copied_before_it_is_migrated(old: Path) -> None:
    store = opened(old)
    assert store.verify() == 9
    store.close()
    backup = old.with_name("ledger.db.v1.bak")
    assert tables(backup) == {"entry", "contract"} and "proof" in tables(old)
    assert backup.stat().st_mode & 0o777 == 0o600
    # The copy is whole by itself, without a log beside it, and a ledger of its own.
    assert {it.name for it in old.parent.glob("ledger.db.v1*")} == {backup.name}
    assert audit_file(backup, lambda: None).holds and audit_file(old, lambda: None).holds


def test_second_message_for_a_slot_convicts_when_the_first_was_written_before_there_were_slots(old: Path) -> None:
    store = opened(old)
    job = signed_job(1)
    closing = next(it for it in job if it.envelope.kind == "closing")
    other = proofs.signed("closing", contract_id=closing.message.contract_id, verdict="bad")  # type: ignore[attr-defined]
    found = store.witness(other.envelope, examples.NOW_MS)
    assert found is not None and found.offender == examples.REQUESTER.peer_id
    store.close()


def test_copy_is_made_once_and_not_for_a_new_ledger(tmp_path: Path, old: Path) -> None:
    opened(old).close()
    backup = old.with_name("ledger.db.v1.bak")
    written = backup.stat().st_mtime_ns
    opened(old).close()
    assert backup.stat().st_mtime_ns == written
    opened(tmp_path / "fresh.db").close()
    assert not list(tmp_path.glob("fresh.db*.bak"))


def test_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    store = opened(path)
    assert store.verify() == 0
    store.close()
    assert not list(tmp_path.glob("*.bak"))


def test_old_ledger_stays_as_it_was_when_its_copy_cannot_be_written(old: Path) -> None:
    # Where the copy should go there is a folder, as good as a full disk.
    old.with_name("ledger.db.v1.bak").mkdir()
    with pytest.raises(LedgerError, match=r"backup copy cannot be written.*nothing was changed"):
        opened(old)
    assert tables(old) == {"entry", "contract"}


def test_old_ledger_stays_as_it_was_when_a_later_step_fails(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (MIGRATIONS[0], MIGRATIONS[1] + "SELECT nothing;")
    monkeypatch.setattr(store_module, "MIGRATIONS", broken)
    with pytest.raises(LedgerError):
        opened(old)
    monkeypatch.undo()
    assert tables(old) == {"entry", "contract"}
    store = opened(old)
    assert store.verify() == 9
    store.close()


@pytest.mark.parametrize("page", [1, 2, 3, 5])
def test_damaged_ledger_is_refused_with_what_to_do_and_left_alone(old: Path, page: int) -> None:
    store = opened(old)
    for number in range(50, 80):
        store.write(entries_of(signed_job(number)), [])
    store.close()
    old.with_name("ledger.db.v1.bak").unlink()
    data = bytearray(old.read_bytes())
    data[page * 4096 : page * 4096 + 512] = b"\xa5" * 512
    old.write_bytes(data)
    with pytest.raises(LedgerError, match=r"cannot be used as a ledger: .*nothing was changed.*put a backup"):
        opened(old)
    assert old.read_bytes() == data


@pytest.mark.parametrize("newest", [-1, 100, 9])
def test_ledger_is_refused_when_one_of_its_newest_entries_was_altered(
    old: Path, monkeypatch: pytest.MonkeyPatch, newest: int
) -> None:
    store = opened(old)
    monkeypatch.setattr(store_module, "CHECKED_AT_START", newest)
    store.write(entries_of(signed_job(2)), [])
    store.db.execute("UPDATE entry SET envelope = x'00' WHERE seq = 15")
    store.close()
    with pytest.raises(LedgerError, match=r"entry 15 does not continue the chain before it; nothing was changed"):
        opened(old)


def test_garbage_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"garbage" * 1_000)
    with pytest.raises(LedgerError, match=r"not a database; nothing was changed.*souk ledger verify"):
        opened(path)
    assert path.read_bytes() == b"garbage" * 1_000
