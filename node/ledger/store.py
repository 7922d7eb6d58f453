"""The ledger's SQL, synchronous: called on a thread of its own, never on the event loop.

``synchronous=FULL``: with NORMAL, acknowledged transactions are lost in a power cut (734 of 900 simulated cuts)
although every SIGKILL test passes.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from string import hexdigits
from typing import Final

from node.errors import KnownContractError, LedgerError
from node.ledger.disk import Disk, FileDisk
from node.ledger.entries import ContractRow, Entry, Role, StoredMessage, Totals
from node.ledger.health import is_damage, is_of_disk, remedy_of
from node.ledger.schema import MIGRATIONS, WHAT_TO_DO, check, migrate, slot_key_of
from node.ledger.settlement import note_statement
from protocol.envelope import Envelope
from protocol.equivocation import Proof, contradiction_untrusted, encode_proof
from protocol.errors import RemoteProtocolError
from protocol.statement import Statement
from protocol.states import ProviderState, RequesterState, interrupted, is_final
from protocol.units import JobId, MessageId, Microcredits, ModelId, PeerId, UnixMs

FIRST_HASH: Final = bytes(32)
CHECKED_AT_START: Final = 100_000
"""Newest entries whose hash chain is checked at every start: 0.3 s of a small machine. An audit checks all."""
FINGERPRINTS_MAX: Final = 4096
"""The newest ones: 4 MiB of answers of 64 tokens, 128 MiB of long ones."""
PROBE_BYTES: Final = 64 * (32 + 20) * 1024
"""A batch of 64 postings, each with a fingerprint of 32 KiB and five more pages; one took 2.3 MiB of the log. With
less, a disk that is all but full would look well too early. Writing it took 20 ms."""

_ENERGY: Final = "energy_millijoules"
_ENERGY_SINCE: Final = 5
"""The migration that made its column."""
_CONTRACT_COLUMNS: Final = (
    "contract_id, job_id, role, peer_id, model_id, model, state, tokens_in, tokens_out, metered, vouchered, at_ms,"
    f" {_ENERGY}"
)


class LedgerStore:
    """A database. Every method may raise ``sqlite3.Error``: nothing was written; closed: ``LedgerError``."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = FileDisk(path) if disk is None else disk
        self._db: sqlite3.Connection | None = None
        self._last_hash: bytes | None = None
        """The newest entry's, while nobody but ``write`` can have changed it; None: ask the database."""

    @property
    def db(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerError(f"{self._path}: the ledger is closed")
        return self._db

    def open(self) -> None:
        """Open or create the database and bring its schema up to date.

        Raises: LedgerError (not a ledger, damaged, newer than this program, or the disk refuses).
        """
        try:
            self._db = self._disk.connect()
            check(self._db, self._path)
            migrate(self._db, self._path, MIGRATIONS)
            self.verify(CHECKED_AT_START)
        except (sqlite3.Error, OSError) as exc:
            self.close()
            hint = f"; {_what_to_do(exc)}"
            raise LedgerError(f"{self._path}: cannot be used as a ledger: {exc}{hint}") from exc
        except LedgerError:
            self.close()
            raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
            self._last_hash = None

    def write(
        self,
        entries: Iterable[Entry],
        rows: Iterable[ContractRow],
        *,
        new: Collection[MessageId] = (),
        fingerprints: Iterable[tuple[MessageId, bytes]] = (),
    ) -> list[Proof]:
        """Append entries, replace rows and keep fingerprints in one transaction; durable when this returns.

        Return the proofs that the new entries make with older ones: they are stored with them.

        Raises: KnownContractError (one of ``new`` has a row already), sqlite3.Error.
        """
        made: list[Proof] = []
        self.db.execute("BEGIN IMMEDIATE")
        try:
            if len(set(new)) < len(new):
                # Two postings of one batch: alone, the second one finds the first.
                raise KnownContractError(f"{self._path}: a contract was entered twice at once")
            for contract_id in new:
                if self.knows(contract_id):
                    raise KnownContractError(f"{self._path}: contract {contract_id.hex()} was entered before")
            # After a failure the outcome is unknown: the next write looks again.
            link, self._last_hash = self._last_hash or self._newest_hash(), None
            for entry in entries:
                link, proof = self._append(entry, link)
                made += [proof] if proof is not None else []
            for row in rows:
                put_contract(self.db, row)
            for contract_id, data in fingerprints:
                self._keep_fingerprint(contract_id, data)
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        self._last_hash = link
        return made

    def _keep_fingerprint(self, contract_id: MessageId, data: bytes) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO fingerprint (contract_id, data) VALUES (?, ?)", (contract_id, data)
        )
        self.db.execute(
            "DELETE FROM fingerprint WHERE number <= (SELECT max(number) FROM fingerprint) - ?",
            (FINGERPRINTS_MAX,),
        )

    def fingerprint(self, contract_id: MessageId) -> bytes | None:
        """Return what was kept of the answer that this contract bought; None when that is nothing any more."""
        found = self.db.execute("SELECT data FROM fingerprint WHERE contract_id = ?", (contract_id,)).fetchone()
        return None if found is None else bytes(found[0])

    def _newest_hash(self) -> bytes:
        last = self.db.execute("SELECT hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
        return bytes(last[0]) if last else FIRST_HASH

    def witness(self, envelope: Envelope, at_ms: UnixMs) -> Proof | None:
        """Store and return the proof that a message makes with an entry; the message itself becomes no entry."""
        slot = slot_key_of(envelope)
        if slot is None:
            return None
        with self._transaction():
            return self._contradict(envelope, slot, at_ms)

    def _append(self, entry: Entry, link: bytes) -> tuple[bytes, Proof | None]:
        envelope = entry.envelope
        slot = entry.slot or slot_key_of(envelope)
        next_link = sha256(link + envelope.message_id + sha256(envelope.raw).digest()).digest()
        done = self.db.execute(
            "INSERT INTO entry (message_id, kind, job_id, contract_id, peer_id, signer, at_ms, envelope, hash,"
            " slot) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (message_id) DO NOTHING",
            (
                envelope.message_id,
                envelope.kind,
                entry.job_id,
                entry.contract_id,
                entry.peer_id,
                envelope.signer,
                entry.at_ms,
                envelope.raw,
                next_link,
                slot,
            ),
        )
        if not done.rowcount:
            return link, None
        if envelope.kind == Statement.kind:
            note_statement(self.db, entry)
        return next_link, None if slot is None else self._contradict(envelope, slot, entry.at_ms)

    def _contradict(self, envelope: Envelope, slot: bytes, at_ms: UnixMs) -> Proof | None:
        """Store and return the proof of ``envelope`` against the first entry in its slot, once for each pair."""
        first = self.db.execute(
            "SELECT envelope FROM entry WHERE slot = ? AND message_id != ? ORDER BY seq LIMIT 1",
            (slot, envelope.message_id),
        ).fetchone()
        if first is None:
            return None
        try:
            proof = contradiction_untrusted(first[0], envelope.raw)
        except RemoteProtocolError:
            return None  # another network's, or an entry that was altered since: no proof for others
        low, high = proof.message_ids
        done = self.db.execute(
            "INSERT INTO proof (first_id, second_id, offender, kind, at_ms, proof) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (first_id, second_id) DO NOTHING",
            (low, high, proof.offender, proof.slot.kind, at_ms, encode_proof(proof)),
        )
        return proof if done.rowcount else None

    def contracts(self, limit: int, *, role: Role | None = None) -> list[ContractRow]:
        """Return the newest contracts first; with ``role`` those in which this node had it."""
        found = self.db.execute(
            f"SELECT {_CONTRACT_COLUMNS} FROM contract WHERE ?1 IS NULL OR role = ?1"  # noqa: S608 - constants only
            " ORDER BY at_ms DESC, contract_id LIMIT ?2",
            (role, limit),
        )
        return [_row(fields) for fields in found]

    def find_contract(self, prefix: str) -> ContractRow | None:
        """Return the one contract whose id begins with these hex digits; None for none or several."""
        if not prefix:
            return None
        # Peers ask for whole ids: those are looked up, while a prefix goes through all contracts.
        is_whole = len(prefix) == 2 * len(FIRST_HASH) and set(prefix) <= set(hexdigits)
        where = "contract_id = ?2" if is_whole else "substr(hex(contract_id), 1, ?1) = ?2"
        found = self.db.execute(
            f"SELECT {_CONTRACT_COLUMNS} FROM contract WHERE {where} LIMIT 2",  # noqa: S608 - constants only
            (len(prefix), bytes.fromhex(prefix) if is_whole else prefix.upper()),
        ).fetchall()
        return _row(found[0]) if len(found) == 1 else None

    def knows(self, contract_id: MessageId) -> bool:
        """Return whether this contract was ever entered."""
        found = self.db.execute("SELECT 1 FROM contract WHERE contract_id = ?", (contract_id,))
        return found.fetchone() is not None

    def messages(self, row: ContractRow) -> list[StoredMessage]:
        """Return a contract's messages in the order in which they were written, its ask and quote first."""
        found = self.db.execute(
            "SELECT kind, signer, at_ms, envelope FROM entry WHERE contract_id = ?"
            " OR (job_id = ? AND peer_id = ? AND contract_id IS NULL) ORDER BY seq",
            (row.contract_id, row.job_id, row.peer_id),
        )
        other: Role = "provider" if row.role == "requester" else "requester"
        return [
            StoredMessage(
                kind=kind,
                sender=other if signer == row.peer_id else row.role,
                at_ms=UnixMs(at_ms),
                raw=envelope,
            )
            for kind, signer, at_ms, envelope in found
        ]

    def totals(self) -> Totals:
        sums = dict(self.db.execute("SELECT role, sum(vouchered) FROM contract GROUP BY role").fetchall())
        return Totals(earned=Microcredits(sums.get("provider", 0)), spent=Microcredits(sums.get("requester", 0)))

    def end_interrupted(self, only: Collection[MessageId] | None = None) -> int:
        """End the contracts that a crash of ours left open, or ``only`` these of them; return how many it were."""
        moved = []
        for row in self.contracts(limit=-1):
            if is_final(row.state) or not (only is None or row.contract_id in only):
                continue
            moved.append((str(interrupted(row.state)), row.contract_id))
        # One transaction, so one wait for the disk.
        with self._transaction():
            self.db.executemany("UPDATE contract SET state = ? WHERE contract_id = ?", moved)
        return len(moved)

    def probe(self) -> None:
        """Write something that nobody reads, and more of it than a posting: to see whether the disk takes it."""
        # What is in the file already makes room in the log, which may be all that it takes.
        self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        with self._transaction():
            self.db.execute("INSERT OR REPLACE INTO probe VALUES (0, zeroblob(?))", (PROBE_BYTES,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do what happens inside wholly or not at all; durable afterwards."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    def verify(self, newest: int = -1) -> int:
        """Return the number of entries once the hash chain holds, over all or the newest of them.

        Raises: LedgerError (it is broken).
        """
        (last,) = self.db.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()
        found = self.db.execute(
            "SELECT seq, message_id, envelope, hash FROM entry WHERE seq > ? ORDER BY seq",
            (last - newest if newest >= 0 else 0,),
        )
        link, count = FIRST_HASH, 0
        for number, message_id, raw, stored in found:
            # What the first of the newest continues is not looked at.
            is_known = count or newest < 0 or number == 1
            if is_known and sha256(link + message_id + sha256(raw).digest()).digest() != stored:
                raise LedgerError(
                    f"{self._path}: entry {number} does not continue the chain before it; {WHAT_TO_DO}"
                )
            link = stored
            count += 1
        return count


def put_contract(db: sqlite3.Connection, row: ContractRow) -> None:
    """Write where a contract stands; the newest row replaces the one before."""
    db.execute(
        f"INSERT INTO contract ({_CONTRACT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants only
        " ON CONFLICT (contract_id) DO UPDATE SET state = excluded.state, tokens_in = excluded.tokens_in,"
        " tokens_out = excluded.tokens_out, metered = excluded.metered, vouchered = excluded.vouchered,"
        # What was measured once stays: later rows come from messages.
        " energy_millijoules = coalesce(excluded.energy_millijoules, energy_millijoules)",
        (
            row.contract_id,
            row.job_id,
            row.role,
            row.peer_id,
            row.model_id,
            row.model,
            str(row.state),
            row.tokens_in,
            row.tokens_out,
            row.metered,
            row.vouchered,
            row.at_ms,
            row.energy_millijoules,
        ),
    )


def all_contracts(db: sqlite3.Connection, unreadable: Callable[[LedgerError], None]) -> Iterator[ContractRow]:
    """Yield every row that this program can read, in no order; ``unreadable`` hears of the others."""
    # An audit reads copies as older programs left them.
    (version,) = db.execute("PRAGMA user_version").fetchone()
    columns = _CONTRACT_COLUMNS if version >= _ENERGY_SINCE else _CONTRACT_COLUMNS.replace(_ENERGY, "NULL")
    for fields in db.execute(f"SELECT {columns} FROM contract"):  # noqa: S608 - constants only
        try:
            yield _row(fields)
        except LedgerError as exc:
            unreadable(exc)


def _what_to_do(exc: sqlite3.Error | OSError) -> str:
    if isinstance(exc, OSError):
        return "see to the disk and the folder that hold it"
    if is_of_disk(exc):
        return remedy_of(exc)
    # Another process may hold it; only damage asks for more.
    return WHAT_TO_DO if is_damage(exc) else "try again"


def _row(fields: tuple[object, ...]) -> ContractRow:
    match fields:
        case (
            bytes(contract_id),
            bytes(job_id),
            str(role),
            bytes(peer_id),
            bytes(model_id),
            str(model),
            str(state),
            int(tokens_in),
            int(tokens_out),
            int(metered),
            int(vouchered),
            int(at_ms),
            int() | None as energy_millijoules,
        ):
            pass
        case _:
            raise LedgerError("a contract row has other types than this program wrote")
    known: type[ProviderState] | type[RequesterState] = ProviderState if role == "provider" else RequesterState
    try:
        at = known(state)
    except ValueError as exc:
        raise LedgerError(f"contract {contract_id.hex()} is in state {state!r}, unknown to this program") from exc
    return ContractRow(
        contract_id=MessageId(contract_id),
        job_id=JobId(job_id),
        role="provider" if role == "provider" else "requester",
        peer_id=PeerId(peer_id),
        model_id=ModelId(model_id),
        model=model,
        state=at,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        metered=Microcredits(metered),
        vouchered=Microcredits(vouchered),
        at_ms=UnixMs(at_ms),
        energy_millijoules=energy_millijoules,
    )
