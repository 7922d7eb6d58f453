"""What the ledger knows of settlement with a peer: promises, statements, acknowledged payments (spec 09).

Statements and acknowledgements are entries without a contract. The row that says what is settled is written with
the entry that completes a statement, and never otherwise: ``settlement_audit.py`` derives it a second time.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final, TypeVar

from node.errors import LedgerError
from node.ledger.entries import Entry
from protocol.envelope import body_of_untrusted, network_of_untrusted
from protocol.errors import RemoteProtocolError
from protocol.settlement import SETTLEMENT_TYPES, encode_settlement
from protocol.signed import Signed, SignedMessage, body_untrusted, read_untrusted
from protocol.statement import Head, Parties, Settled, Statement, Sums, head_of
from protocol.units import JobId, Microcredits, NetworkId, PeerId, UnixMs

NO_JOB: Final = JobId(b"")
"""In the place of a job's id: a statement is of none."""
EVIDENCE_STATEMENTS_MAX: Final = 4_000
"""Newest statements in a bundle: two envelopes each, far below what a reader takes."""

# The form in which the index of these entries is found: its own condition has to stand in the query.
_ENTRY: Final = "kind IN ('statement', 'settled') AND peer_id = ?"

S = TypeVar("S", bound=SignedMessage)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledRow:
    """What is settled after a statement, in all: of what the peer owes us, and of what we owe it."""

    peer_id: PeerId
    number: int
    received: Microcredits
    paid: Microcredits
    at_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBooks:
    """Everything that an exchange with one peer starts from."""

    parties: Parties
    peer_id: PeerId
    earned: Microcredits
    """What the peer promised us."""
    promised: Microcredits
    head: Head
    """The last statement that both signed."""
    own: Signed[Statement] | None
    """The last one that we signed: of ``head``'s number, or one further, unfinished."""
    acknowledged: Signed[Settled] | None
    """Our last word on what the peer paid by other means."""
    paid: Signed[Settled] | None
    """The peer's last word on what we paid."""

    @property
    def unfinished(self) -> Signed[Statement] | None:
        """Return the statement that we signed and the peer has not, as far as we know."""
        return None if self.own is None or self.own.message.number == self.head.number else self.own

    @property
    def sums(self) -> Sums:
        """Return what our books bear out."""
        from_us = 0 if self.paid is None else self.paid.message.cumulative
        from_them = 0 if self.acknowledged is None else self.acknowledged.message.cumulative
        if self.peer_id == self.parties.second:
            return Sums(
                first_promised=self.promised,
                second_promised=self.earned,
                first_paid=from_us,
                second_paid=from_them,
            )
        return Sums(
            first_promised=self.earned,
            second_promised=self.promised,
            first_paid=from_them,
            second_paid=from_us,
        )

    @property
    def received(self) -> Microcredits:
        """Return what is settled of the peer's promises."""
        return Microcredits(0 if self.head.statement is None else self.head.statement.settled_by(self.peer_id))

    @property
    def settled_by_us(self) -> Microcredits:
        other = self.parties.other(self.peer_id)
        return Microcredits(0 if self.head.statement is None else self.head.statement.settled_by(other))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedStatement:
    """One statement as people look at it."""

    peer_id: PeerId
    statement: Statement
    is_signed_by_both: bool
    at_ms: UnixMs
    """When the earlier of its signatures was entered here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementEnvelopes:
    """What ``protocol.settlement.encode_settlement`` takes."""

    number: int
    network: NetworkId
    envelopes: list[tuple[str, bytes]]
    """(type, envelope) in the order of the ledger."""

    def encode(self) -> bytes:
        """Return the bundle as JSON."""
        return encode_settlement(self.number, self.network, self.envelopes)


def pair_books(db: sqlite3.Connection, us: PeerId, peer_id: PeerId) -> PairBooks:
    """Return where we stand with a peer. Raises: LedgerError (an entry cannot be read), sqlite3.Error."""
    sums = dict(
        db.execute(
            "SELECT role, sum(vouchered) FROM contract WHERE peer_id = ? GROUP BY role", (peer_id,)
        ).fetchall()
    )
    theirs = _newest(db, peer_id, peer_id, Statement)
    return PairBooks(
        parties=Parties.of(us, peer_id),
        peer_id=peer_id,
        earned=Microcredits(sums.get("provider", 0)),
        promised=Microcredits(sums.get("requester", 0)),
        # The peer's signature is entered with ours or after it: its last one has both.
        head=Head() if theirs is None else head_of(theirs),
        own=_newest(db, peer_id, us, Statement),
        acknowledged=_newest(db, peer_id, us, Settled),
        paid=_newest(db, peer_id, peer_id, Settled),
    )


def note_statement(db: sqlite3.Connection, entry: Entry) -> None:
    """Write what is settled if ``entry``, just entered, is the second signature under a statement.

    Called within the transaction that enters it. Raises: sqlite3.Error.
    """
    envelope = entry.envelope
    try:
        statement = body_untrusted(envelope, Statement)
    except RemoteProtocolError:
        return  # no statement that anybody reads; an audit names it
    other = statement.second if envelope.signer == statement.first else statement.first
    found = db.execute(
        f"SELECT envelope FROM entry WHERE {_ENTRY} AND kind = 'statement' AND signer = ?"  # noqa: S608 - constants only
        " ORDER BY seq DESC LIMIT 1",
        (entry.peer_id, other),
    ).fetchone()
    if found is None or body_of_untrusted(found[0]) != envelope.body:
        return
    put_settled(db, row_after(statement, entry.peer_id))


def row_after(statement: Statement, peer_id: PeerId) -> SettledRow:
    """Return the row that a completed statement with ``peer_id`` gives."""
    us = Parties.of(PeerId(statement.first), PeerId(statement.second)).other(peer_id)
    return SettledRow(
        peer_id=peer_id,
        number=statement.number,
        received=statement.settled_by(peer_id),
        paid=statement.settled_by(us),
        at_ms=UnixMs(statement.made_at_ms),
    )


def put_settled(db: sqlite3.Connection, row: SettledRow) -> None:
    db.execute(
        "INSERT INTO settled (peer_id, number, received, paid, at_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (peer_id, number) DO NOTHING",
        (row.peer_id, row.number, row.received, row.paid, row.at_ms),
    )


def settled_rows(db: sqlite3.Connection) -> dict[tuple[bytes, int], SettledRow]:
    """Return every row by peer and number; none in a ledger from before there were any. Raises: sqlite3.Error."""
    if not has_settlement(db):
        return {}
    return {
        (peer_id, number): SettledRow(
            peer_id=PeerId(peer_id),
            number=number,
            received=Microcredits(received),
            paid=Microcredits(paid),
            at_ms=UnixMs(at_ms),
        )
        for peer_id, number, received, paid, at_ms in db.execute(
            "SELECT peer_id, number, received, paid, at_ms FROM settled"
        )
    }


def has_settlement(db: sqlite3.Connection) -> bool:
    """Return whether the ledger is of a version that settles: a reader may not bring it up to date."""
    return db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'settled'").fetchone() is not None


def statements(db: sqlite3.Connection, peer_id: PeerId | None, limit: int) -> list[ListedStatement]:
    """Return the newest statements first, with one peer or all. Raises: LedgerError, sqlite3.Error."""
    if not has_settlement(db):
        return []
    found = db.execute(
        "SELECT peer_id, envelope, at_ms FROM entry WHERE kind IN ('statement', 'settled') AND kind = 'statement'"
        " AND (?1 IS NULL OR peer_id = ?1) ORDER BY seq DESC LIMIT ?2",
        (peer_id, 2 * limit + 1),
    )
    # By body: the two signatures of one statement share it.
    listed: dict[bytes, ListedStatement] = {}
    for peer, raw, at_ms in found:
        signed = _read(raw, Statement)
        body = signed.envelope.body
        with_both = body in listed
        listed[body] = ListedStatement(
            peer_id=PeerId(peer),
            statement=signed.message,
            is_signed_by_both=with_both,
            at_ms=UnixMs(at_ms),
        )
    return list(listed.values())[:limit]


def settlement_envelopes(db: sqlite3.Connection, peer_id: PeerId) -> SettlementEnvelopes | None:
    """Return what a bundle of one peer's statements is made of.

    None when nothing is signed by both. Raises: LedgerError, sqlite3.Error.
    """
    if not has_settlement(db):
        return None
    last = _newest(db, peer_id, peer_id, Statement)
    if last is None:
        return None
    since = max(last.message.number - EVIDENCE_STATEMENTS_MAX, 0)
    rows = db.execute(
        f"SELECT kind, envelope FROM entry WHERE {_ENTRY} ORDER BY seq DESC LIMIT ?",  # noqa: S608 - constants only
        (peer_id, 4 * EVIDENCE_STATEMENTS_MAX),
    ).fetchall()
    kept = [
        (kind, raw)
        for kind, raw in reversed(rows)
        if kind != Statement.kind or _read(raw, Statement).message.number > since
    ]
    return SettlementEnvelopes(
        number=last.message.number, network=network_of_untrusted(last.envelope.raw), envelopes=kept
    )


def _newest(db: sqlite3.Connection, peer_id: PeerId, signer: PeerId, kind: type[S]) -> Signed[S] | None:
    """Return the last message of a type by one signer, with one peer."""
    found = db.execute(
        f"SELECT envelope FROM entry WHERE {_ENTRY} AND kind = ? AND signer = ? ORDER BY seq DESC LIMIT 1",  # noqa: S608 - constants only
        (peer_id, kind.kind, signer),
    ).fetchone()
    return None if found is None else _read(found[0], kind)


def _read(raw: bytes, kind: type[S]) -> Signed[S]:
    """Return an entry of ours as the message that it is. Raises: LedgerError (it was altered since)."""
    try:
        signed = read_untrusted(raw, network=network_of_untrusted(raw), allowed=SETTLEMENT_TYPES)
        return Signed(body_untrusted(signed.envelope, kind), signed.envelope)
    except RemoteProtocolError as exc:
        raise LedgerError(
            f"a {kind.kind} in the ledger cannot be read: {exc}; souk ledger verify names it"
        ) from exc
