"""A rebuild gives each row what its messages say and nothing else, keeps a copy, and never touches a message."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from node.errors import LedgerError
from node.ledger.audit import audit_file
from node.ledger.entries import ContractRow, Role
from node.ledger.rebuild import rebuild_file
from node.ledger.store import LedgerStore
from protocol.states import ProviderState, RequesterState, is_final
from tests.ledger.jobs import contract_of, entries_of, row_of, signed_job

JOBS = [signed_job(number) for number in range(4)]


def ledger_with(path: Path, *, role: Role = "provider", lengths: tuple[int, ...] = (9, 9, 9, 9)) -> Path:
    """Write jobs that ended after so many of their messages."""
    store = LedgerStore(path)
    store.open()
    for job, length in zip(JOBS, lengths, strict=True):
        rows = [row_of(job, role)] if length == 9 else []
        store.write(entries_of(job, role)[:length], rows)
    store.close()
    return path


def rows(path: Path) -> dict[bytes, ContractRow]:
    store = LedgerStore(path)
    store.open()
    found = {row.contract_id: row for row in store.contracts(limit=-1)}
    store.close()
    return found


def alter(path: Path, change: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE contract SET metered = 1, vouchered = 0, tokens_out = 3",
        "UPDATE contract SET role = 'requester', peer_id = zeroblob(32)",
        "UPDATE contract SET state = 'dreaming'",
        "UPDATE contract SET at_ms = 0, tokens_in = 9, job_id = x'00', model_id = x'00'",
        "DELETE FROM contract WHERE rowid % 2 = 0",
    ],
)
def test_rebuild_restores_every_signed_field_when_rows_were_altered(tmp_path: Path, change: str) -> None:
    path = ledger_with(tmp_path / "ledger.db")
    good = rows(path)
    alter(path, change)
    assert not audit_file(path, lambda: None).holds
    done = rebuild_file(path)
    assert (done.contracts, done.backup) == (4, path.with_name("ledger.db.rebuild.bak")) and done.changed
    assert audit_file(path, lambda: None).holds
    restored = rows(path)
    assert {key: row.state for key, row in restored.items()} == {key: row.state for key, row in good.items()}
    assert not audit_file(done.backup, lambda: None).holds  # type: ignore[arg-type]  # it is a path, see above


def test_rebuild_keeps_what_no_message_says(tmp_path: Path) -> None:
    path = ledger_with(tmp_path / "ledger.db")
    alter(path, "UPDATE contract SET energy_millijoules = 1250, metered = 1")
    rebuild_file(path)
    assert {(row.energy_millijoules, row.metered > 1) for row in rows(path).values()} == {(1250, True)}


def test_row_of_a_later_message_leaves_the_energy_that_was_measured(tmp_path: Path) -> None:
    store = LedgerStore(tmp_path / "ledger.db")
    store.open()
    row = replace(row_of(JOBS[0]), energy_millijoules=7)
    store.write([], [row])
    store.write([], [replace(row, energy_millijoules=None)])
    assert store.contracts(limit=-1) == [row]
    store.close()


def test_rebuild_changes_nothing_when_all_holds(tmp_path: Path) -> None:
    path = ledger_with(tmp_path / "ledger.db")
    good = rows(path)
    assert (rebuild_file(path).changed, rows(path)) == (0, good)
    assert not list(tmp_path.glob("*.bak"))


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (
            "provider",
            [ProviderState.FAILED, ProviderState.FAILED, ProviderState.UNPAID, ProviderState.CLOSED],
        ),
        ("requester", [RequesterState.LAPSED, RequesterState.LOST, RequesterState.LOST, RequesterState.CLOSED]),
    ],
)
def test_rebuild_ends_a_contract_as_a_crash_would_when_its_row_is_gone(
    tmp_path: Path, role: Role, expected: list[ProviderState | RequesterState]
) -> None:
    # After the contract alone; a meter without its voucher; the receipt; all.
    path = ledger_with(tmp_path / "ledger.db", role=role, lengths=(2, 4, 8, 9))
    alter(path, "DELETE FROM contract")
    assert rebuild_file(path).changed == 4
    assert audit_file(path, lambda: None).holds
    found = rows(path)
    states = [found[contract_of(job)].state for job in JOBS]
    assert states == expected and all(is_final(state) for state in states)


def test_rebuild_refuses_when_the_messages_themselves_do_not_hold(tmp_path: Path) -> None:
    path = ledger_with(tmp_path / "ledger.db")
    # Neither in the hash chain nor in a row: only the messages tell that the other party is another.
    alter(path, "UPDATE entry SET peer_id = zeroblob(32) WHERE seq = 7")
    before = rows(path)
    with pytest.raises(LedgerError, match="faults in the entries themselves, the first at entry 7"):
        rebuild_file(path)
    assert rows(path) == before and not list(tmp_path.glob("*.bak"))
