"""The schema moves forward only, and a broken write leaves nothing."""

import sqlite3
from pathlib import Path

import pytest

from node.errors import LedgerError
from node.execution.frames import FINGERPRINT_BYTES_MAX
from node.ledger import store as store_module
from node.ledger.ledger import BATCH_MAX
from node.ledger.store import PROBE_BYTES, LedgerStore
from protocol.units import MessageId
from tests.ledger.fakes import contract_id, entry, row


def opened(path: Path) -> LedgerStore:
    store = LedgerStore(path)
    store.open()
    return store


def test_ledger_is_brought_up_to_date_when_an_older_program_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    store = opened(path)
    store.write([entry(1)], [row(1)])
    store.close()
    monkeypatch.setattr(
        store_module, "MIGRATIONS", (*store_module.MIGRATIONS, "CREATE TABLE later (a INTEGER) STRICT;")
    )
    store = opened(path)
    assert store.db.execute("SELECT count(*) FROM later").fetchone() == (0,)
    assert store.verify() == 1 and store.knows(row(1).contract_id)
    store.close()


def test_ledger_stays_as_it_was_when_a_migration_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    opened(path).close()
    monkeypatch.setattr(
        store_module, "MIGRATIONS", (*store_module.MIGRATIONS, "CREATE TABLE later (a INTEGER); SELECT nothing;")
    )
    with pytest.raises(LedgerError, match="cannot be used"):
        opened(path)
    monkeypatch.undo()
    store = opened(path)
    assert store.db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'later'").fetchone() == (0,)
    store.close()


def test_nothing_is_written_when_one_of_a_writes_rows_is_bad(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger.db")
    with pytest.raises(sqlite3.IntegrityError):
        store.write([entry(1)], [row(1), row(2, vouchered=-1)])
    assert store.verify() == 0 and store.contracts(10) == []
    store.write([entry(1)], [row(1)])
    assert store.verify() == 1
    store.close()


def test_ledger_says_so_when_a_row_holds_a_state_that_this_program_does_not_know(tmp_path: Path) -> None:
    store = opened(tmp_path / "ledger.db")
    store.write([], [row(1)])
    store.db.execute("UPDATE contract SET state = 'dreaming'")
    with pytest.raises(LedgerError, match="dreaming"):
        store.contracts(1)
    store.close()


def test_failed_open_leaves_no_connection(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"x" * 5000)
    store = LedgerStore(path)
    with pytest.raises(LedgerError):
        store.open()
    with pytest.raises(LedgerError, match="closed"):
        _ = store.db


def test_fingerprints_of_the_newest_contracts_are_kept_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FINGERPRINTS_MAX", 2)
    store = opened(tmp_path / "ledger.db")
    contracts = [MessageId(bytes([number]) * 32) for number in range(4)]
    for each in contracts:
        store.write([], [], fingerprints=[(each, each[:3])])
    store.close()
    store.open()
    assert [store.fingerprint(contract_id) for contract_id in contracts] == [None, None, b"\2\2\2", b"\3\3\3"]
    store.close()


def test_probe_takes_as_much_of_the_disk_as_the_largest_batch(tmp_path: Path) -> None:
    store, log = opened(tmp_path / "ledger.db"), tmp_path / "ledger.db-wal"
    before = log.stat().st_size
    numbers = range(BATCH_MAX)
    store.write(
        [entry(4 * number + each, contract=number) for number in numbers for each in range(4)],
        [row(number) for number in numbers],
        fingerprints=[(contract_id(number), bytes(FINGERPRINT_BYTES_MAX)) for number in numbers],
    )
    assert BATCH_MAX * FINGERPRINT_BYTES_MAX < log.stat().st_size - before <= PROBE_BYTES
    store.close()
