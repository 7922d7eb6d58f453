"""Writes the rows of contracts and settlements anew from the signed messages: for a ledger whose sums went wrong.

Never of itself. The entries are not touched, and have to hold: what was promised is read, not guessed.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from node.errors import LedgerError
from node.ledger.audit import EntryReader, read_entries
from node.ledger.entries import ContractRow
from node.ledger.schema import WHAT_TO_DO, back_up
from node.ledger.settlement import put_settled, settled_rows
from node.ledger.store import LedgerStore, all_contracts, put_contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a rebuild did."""

    contracts: int
    changed: int
    """Rows that were made, altered or dropped."""
    backup: Path | None
    """The ledger as it was; None when nothing had to change."""


def rebuild_file(path: Path) -> Rebuilt:
    """Make the rows of the ledger at ``path`` what its messages say; nobody else may have it open.

    Raises: LedgerError (the entries do not hold, it cannot be read or written).
    """
    store = LedgerStore(path)
    store.open()
    try:
        return _rebuild(store.db, path)
    except sqlite3.Error as exc:
        raise LedgerError(f"{path}: cannot be rebuilt: {exc}; nothing was changed") from exc
    finally:
        store.close()


def _rebuild(db: sqlite3.Connection, path: Path) -> Rebuilt:
    reader = EntryReader()
    read_entries(db, reader, lambda: None)
    for tally in reader.tallies.values():
        reader.report(*tally.problems)
    if reader.total:
        first = reader.found[0]
        raise LedgerError(
            f"{path}: {reader.total} faults in the entries themselves, the first at {first.where} ({first.field}):"
            f" there is nothing to rebuild from; {WHAT_TO_DO}"
        )
    # A row that cannot be read is one that the messages have to replace.
    before: dict[bytes, ContractRow] = {row.contract_id: row for row in all_contracts(db, lambda _fault: None)}
    rebuilt = {key: tally.rebuilt(before.get(key)) for key, tally in reader.tallies.items()}
    made = {key: row for key, row in rebuilt.items() if row is not None}
    changed = sum(before.get(key) != made.get(key) for key in before.keys() | made.keys())
    settled_before, settled = settled_rows(db), reader.settlements.rows
    changed += sum(settled_before.get(key) != settled.get(key) for key in settled_before.keys() | settled.keys())
    if not changed:
        return Rebuilt(contracts=len(made), changed=0, backup=None)
    backup = path.with_name(f"{path.name}.rebuild.bak")
    back_up(db, backup)
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("DELETE FROM contract")
        for row in made.values():
            put_contract(db, row)
        db.execute("DELETE FROM settled")
        for settled_row in settled.values():
            put_settled(db, settled_row)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return Rebuilt(contracts=len(made), changed=changed, backup=backup)
