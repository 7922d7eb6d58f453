"""Checks a whole ledger: the file, the hash chain, every signature, and every sum against what was signed.

Reads only, over a connection of its own: beside a running daemon it sees one moment and holds up nobody.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

from node.errors import LedgerError
from node.ledger.books import count_proofs
from node.ledger.disk import BUSY_WAIT_S
from node.ledger.entries import ContractRow
from node.ledger.projection import Difference, Tally
from node.ledger.schema import MIGRATIONS, WHAT_TO_DO, version_of
from node.ledger.settlement import settled_rows
from node.ledger.settlement_audit import SettlementReader
from node.ledger.store import FIRST_HASH, all_contracts
from protocol.envelope import network_of_untrusted
from protocol.errors import RemoteProtocolError
from protocol.messages import MESSAGE_TYPES
from protocol.offer import Ask
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.units import MessageId, NetworkId, PeerId

DIFFERENCES_MAX: Final = 1000
"""More are counted, not kept: a file of garbage would fill the memory with its faults."""
PAUSE_EVERY: Final = 64

_TYPES: Final = tuple(MESSAGE_TYPES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What a check found; ``differences`` is empty when everything holds."""

    entries: int
    contracts: int
    proofs: int
    differences: tuple[Difference, ...]
    differences_total: int

    @property
    def holds(self) -> bool:
        return self.differences_total == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """An entry as it is stored, nothing of it believed yet."""

    number: int
    message_id: bytes
    kind: str
    job_id: bytes
    contract_id: bytes | None
    peer_id: bytes
    signer: bytes
    raw: bytes
    link: bytes


class EntryReader:
    """Goes through the entries once and keeps what they say."""

    def __init__(self) -> None:
        self.tallies: dict[bytes, Tally] = {}
        self.settlements = SettlementReader()
        self.found: list[Difference] = []
        self.total = 0
        self.entries = 0
        self._link = FIRST_HASH

    def report(self, *differences: Difference) -> None:
        self.total += len(differences)
        self.found += differences[: DIFFERENCES_MAX - len(self.found)]

    def take(self, line: _Line) -> None:
        self.entries += 1
        where = f"entry {line.number}"
        link = sha256(self._link + line.message_id + sha256(line.raw).digest()).digest()
        if link != line.link:
            self.report(_difference(where, "hash", line.link, link))
        # The stored link: one altered entry is one fault, not one for every entry after it.
        self._link = line.link
        try:
            network = network_of_untrusted(line.raw)
            signed: Signed[SignedMessage] = read_untrusted(line.raw, network=network, allowed=_TYPES)
        except RemoteProtocolError as exc:
            self.report(
                Difference(where=where, field="envelope", stored=str(exc), expected="a valid signed message")
            )
            return
        envelope = signed.envelope
        for name, stored, expected in (
            ("message_id", line.message_id, envelope.message_id),
            ("kind", line.kind.encode(), envelope.kind.encode()),
            ("signer", line.signer, envelope.signer),
        ):
            if stored != expected:
                self.report(_difference(where, name, stored, expected))
        self._sort_in(line, signed, network)

    def _sort_in(self, line: _Line, signed: Signed[SignedMessage], network: NetworkId) -> None:
        where = f"entry {line.number}"
        if line.contract_id is None:
            if isinstance(signed.message, Ask) and signed.message.job_id != line.job_id:
                self.report(_difference(where, "job_id", line.job_id, signed.message.job_id))
            self.report(*self.settlements.take(signed, PeerId(line.peer_id), where))
            return
        tally = self.tallies.get(line.contract_id)
        if tally is None:
            tally = self.tallies[line.contract_id] = Tally(
                contract_id=MessageId(line.contract_id), peer_id=PeerId(line.peer_id), network=network
            )
        tally.take(signed, network)
        if line.peer_id != tally.peer_id:
            self.report(_difference(where, "peer_id", line.peer_id, tally.peer_id))
        if tally.contract is not None and line.job_id != tally.contract.job_id:
            self.report(_difference(where, "job_id", line.job_id, tally.contract.job_id))


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that cannot write, within one snapshot of the ledger.

    Raises: LedgerError (there is none, it is damaged beyond reading, or a newer program wrote it).
    """
    if not path.is_file():
        raise LedgerError(f"{path}: there is no ledger here: expected a home in which a daemon ran")
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_WAIT_S
        )
        version_of(db, path, len(MIGRATIONS))
        db.execute("BEGIN")
        yield db
    except sqlite3.Error as exc:
        raise LedgerError(f"{path}: cannot be read as a ledger: {exc}; {WHAT_TO_DO}") from exc
    finally:
        if db is not None:
            db.close()


def audit_file(path: Path, pause: Callable[[], None]) -> Audit:
    """Check the ledger at ``path``; ``pause`` is called now and then and may raise to end it early.

    Raises: LedgerError (it cannot be read at all).
    """
    with read_only(path) as db:
        return audit(db, pause)


def audit(db: sqlite3.Connection, pause: Callable[[], None]) -> Audit:
    """Check everything in ``db`` that can be read; damage is a difference, too."""
    reader = EntryReader()
    rows: dict[bytes, ContractRow] = {}
    proofs = 0
    try:
        _check_pages(db, reader)
        read_entries(db, reader, pause)
        rows = _read_rows(db, reader)
        proofs = count_proofs(db)
        settled = settled_rows(db)
    except sqlite3.DatabaseError as exc:
        # Damaged pages: what was read before them still counts.
        reader.report(Difference(where="database", field="reading", stored=str(exc), expected="every row"))
    else:
        _compare(reader, rows)
        reader.report(*reader.settlements.compare(settled))
    return Audit(
        entries=reader.entries,
        contracts=len(reader.tallies),
        proofs=proofs,
        differences=tuple(reader.found),
        differences_total=reader.total,
    )


def _check_pages(db: sqlite3.Connection, reader: EntryReader) -> None:
    for (problem,) in db.execute("PRAGMA integrity_check(20)"):
        if problem != "ok":
            reader.report(Difference(where="database", field="integrity", stored=str(problem), expected="ok"))


def read_entries(db: sqlite3.Connection, reader: EntryReader, pause: Callable[[], None]) -> None:
    """Let ``reader`` take every entry, in the order in which they were written. Raises: sqlite3.Error."""
    found = db.execute(
        "SELECT seq, message_id, kind, job_id, contract_id, peer_id, signer, envelope, hash"
        " FROM entry ORDER BY seq"
    )
    for number, message_id, kind, job_id, contract_id, peer_id, signer, raw, link in found:
        if reader.entries % PAUSE_EVERY == 0:
            pause()
        reader.take(
            _Line(
                number=number,
                message_id=message_id,
                kind=kind,
                job_id=job_id,
                contract_id=contract_id,
                peer_id=peer_id,
                signer=signer,
                raw=raw,
                link=link,
            )
        )


def _read_rows(db: sqlite3.Connection, reader: EntryReader) -> dict[bytes, ContractRow]:
    def unreadable(fault: LedgerError) -> None:
        expected = "a row that this program can read"
        reader.report(Difference(where="contract rows", field="row", stored=str(fault), expected=expected))

    return {row.contract_id: row for row in all_contracts(db, unreadable)}


def _compare(reader: EntryReader, rows: dict[bytes, ContractRow]) -> None:
    for key, tally in reader.tallies.items():
        reader.report(*tally.compare(rows.get(key)))
    for key in rows.keys() - reader.tallies.keys():
        where = f"contract {key.hex()}"
        reader.report(Difference(where=where, field="messages", stored="none", expected="a signed contract"))
    vouchered: dict[tuple[bytes, str], int] = {}
    for tally in reader.tallies.values():
        if tally.role is not None:
            key_of = (tally.peer_id, tally.role)
            vouchered[key_of] = vouchered.get(key_of, 0) + tally.vouchered
    reader.report(*reader.settlements.compare_promises(vouchered))


def _difference(where: str, field: str, stored: bytes, expected: bytes) -> Difference:
    return Difference(where=where, field=field, stored=_shown(stored), expected=_shown(expected))


def _shown(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    return text if text.isidentifier() else value.hex()
