"""The ledger's tables, numbered, and how an older file is brought up to them; its backup comes first.

A damaged file is refused with what to do about it. Nothing here repairs: what was promised is not ours to guess.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from node.durable import sync, sync_folder
from node.errors import LedgerError
from protocol.envelope import Envelope, network_of_untrusted
from protocol.equivocation import SLOT_FIELDS, slot_of
from protocol.errors import RemoteProtocolError
from protocol.messages import MESSAGE_TYPES
from protocol.signed import read_untrusted

# Numbered: a release appends, none is ever edited. ``user_version`` says how many have run.
MIGRATIONS: Final = (
    """
    CREATE TABLE entry (
        seq INTEGER PRIMARY KEY,
        message_id BLOB NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        job_id BLOB NOT NULL,
        contract_id BLOB,
        peer_id BLOB NOT NULL,
        signer BLOB NOT NULL,
        at_ms INTEGER NOT NULL,
        envelope BLOB NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    CREATE INDEX entry_by_contract ON entry (contract_id);
    CREATE INDEX entry_by_job ON entry (job_id);
    CREATE TABLE contract (
        contract_id BLOB PRIMARY KEY,
        job_id BLOB NOT NULL,
        role TEXT NOT NULL CHECK (role IN ('requester', 'provider')),
        peer_id BLOB NOT NULL,
        model_id BLOB NOT NULL,
        model TEXT NOT NULL,
        state TEXT NOT NULL,
        tokens_in INTEGER NOT NULL,
        tokens_out INTEGER NOT NULL,
        metered INTEGER NOT NULL CHECK (metered >= 0),
        vouchered INTEGER NOT NULL CHECK (vouchered >= 0),
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX contract_by_time ON contract (at_ms);
    """,
    # In which place of its contract a message stands, to see a second one for the same place come in (spec 08, 2).
    """
    ALTER TABLE entry ADD COLUMN slot BLOB;
    CREATE INDEX entry_by_slot ON entry (slot) WHERE slot IS NOT NULL;
    CREATE TABLE proof (
        seq INTEGER PRIMARY KEY,
        first_id BLOB NOT NULL,
        second_id BLOB NOT NULL,
        offender BLOB NOT NULL,
        kind TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        proof BLOB NOT NULL,
        UNIQUE (first_id, second_id)
    ) STRICT;
    """,
    # What both parties signed as settled, after each statement (spec 09): cumulative microcredits, so that writing
    # a row twice changes nothing. ``received``: of what the peer owes us; ``paid``: of what we owe it.
    """
    CREATE TABLE settled (
        peer_id BLOB NOT NULL,
        number INTEGER NOT NULL,
        received INTEGER NOT NULL,
        paid INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (peer_id, number)
    ) STRICT;
    CREATE INDEX entry_of_settlement ON entry (peer_id, kind, signer) WHERE kind IN ('statement', 'settled');
    """,
    # A contract's entries are found by the contract: what is looked for by its job has none yet. ``probe`` is
    # written to see whether a disk that refused takes something again.
    """
    DROP INDEX entry_by_job;
    CREATE INDEX entry_by_job ON entry (job_id) WHERE contract_id IS NULL;
    CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 0), data BLOB NOT NULL) STRICT;
    """,
    # Our own measurement, which no message says.
    """
    ALTER TABLE contract ADD COLUMN energy_millijoules INTEGER;
    """,
    # What computed an answer that we sold, for an audit to compare: never the answer.
    """
    CREATE TABLE fingerprint (
        number INTEGER PRIMARY KEY,
        contract_id BLOB NOT NULL UNIQUE,
        data BLOB NOT NULL
    ) STRICT;
    """,
)

WHAT_TO_DO: Final = (
    "nothing was changed. Keep a copy of the file; souk ledger verify names what is wrong with it. To go on, put a"
    " backup (ledger.db.v*.bak, or your own) in its place, or move it away and start with an empty ledger"
)


def fill_slots(db: sqlite3.Connection) -> None:
    """Note the slot of every entry that was written before there were slots."""
    kinds = tuple(message_type.kind for message_type in SLOT_FIELDS)
    marks = ", ".join("?" for _ in kinds)
    found = db.execute(f"SELECT seq, envelope FROM entry WHERE kind IN ({marks})", kinds).fetchall()  # noqa: S608 - marks only
    for seq, raw in found:
        key = slot_key(raw)
        if key is not None:
            db.execute("UPDATE entry SET slot = ? WHERE seq = ?", (key, seq))


def slot_key(raw: bytes) -> bytes | None:
    """Return the slot of a stored envelope; None where it has none or cannot be read."""
    try:
        network = network_of_untrusted(raw)
        signed = read_untrusted(raw, network=network, allowed=tuple(MESSAGE_TYPES.values()))
    except RemoteProtocolError:
        return None
    return slot_key_of(signed.envelope)


def slot_key_of(envelope: Envelope) -> bytes | None:
    slot = slot_of(envelope)
    return None if slot is None else slot.key()


# What SQL cannot compute runs in the transaction of its migration.
STEPS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {2: fill_slots}


def version_of(db: sqlite3.Connection, path: Path, known: int) -> int:
    """Return the number of the last migration of a ledger. Raises: LedgerError (a newer program wrote it)."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > known:
        raise LedgerError(f"{path}: written by a newer souk (schema {version}, this one knows {known})")
    return int(version)


def migrate(db: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    """Run the migrations that ``db`` lacks, each in a transaction of its own; copy an existing ledger before.

    Raises: LedgerError (written by a newer program, or the copy cannot be made), sqlite3.Error.
    """
    version = version_of(db, path, len(migrations))
    if version == len(migrations):
        return
    if version and _is_file(db):
        back_up(db, path.with_name(f"{path.name}.v{version}.bak"))
    for number, script in enumerate(migrations[version:], start=version + 1):
        try:
            db.executescript(f"BEGIN IMMEDIATE; {script}")
            if number in STEPS:
                STEPS[number](db)
            db.execute(f"PRAGMA user_version={number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def back_up(db: sqlite3.Connection, target: Path) -> None:
    """Copy a ledger, whole or not at all, durable on return; an older copy of that name is replaced.

    Raises: LedgerError.
    """
    unfinished = target.with_name(f"{target.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        with closing(sqlite3.connect(unfinished)) as copy:
            db.backup(copy)
            # The copy inherits WAL; without it the one file is all of it.
            copy.execute("PRAGMA journal_mode=DELETE")
        sync(unfinished)
        unfinished.rename(target)
        sync_folder(target.parent)
    except (OSError, sqlite3.Error) as exc:
        unfinished.unlink(missing_ok=True)
        raise LedgerError(f"{target}: the backup copy cannot be written: {exc}; nothing was changed") from exc


def check(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a database whose pages or tables are damaged. Raises: LedgerError, sqlite3.Error."""
    problems = [" ".join(str(problem).split()) for (problem,) in db.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        raise LedgerError(f"{path}: cannot be used as a ledger: damaged ({'; '.join(problems)}); {WHAT_TO_DO}")


def _is_file(db: sqlite3.Connection) -> bool:
    """Return whether there is a file to lose: a simulation's database has none."""
    return any(name == "main" and file for _seq, name, file in db.execute("PRAGMA database_list"))
