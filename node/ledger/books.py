"""Questions to a ledger that people ask: what each peer owes and paid, the entries one by one, the proofs kept.

Each takes a connection, so that the daemon's own and a command's read-only one answer alike.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from node.ledger.entries import Role, StoredProof
from protocol import limits
from protocol.encoding import decode_untrusted
from protocol.envelope import body_of_untrusted
from protocol.errors import RemoteProtocolError
from protocol.states import ProviderState
from protocol.units import MessageId, Microcredits, PeerId, UnixMs

SUMS: Final = ("tokens_in", "tokens_out", "cumulative")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAccount:
    """What passed between this node and one peer, over all contracts."""

    peer_id: PeerId
    earned: Microcredits
    """What the peer promised us."""
    spent: Microcredits
    """What we promised the peer."""
    unpaid_by_them: Microcredits
    """Metered here and never promised; a job that failed on our side leaves none."""
    unpaid_by_us: Microcredits
    sold: dict[str, int]
    """Contracts by state with this node as provider."""
    bought: dict[str, int]
    last_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEntry:
    """One entry with its ids and the numbers in it."""

    number: int
    at_ms: UnixMs
    kind: str
    message_id: bytes
    job_id: bytes
    contract_id: bytes | None
    peer_id: PeerId
    signer: PeerId
    tokens_in: int | None
    tokens_out: int | None
    cumulative: int | None
    envelope: bytes


def peer_accounts(db: sqlite3.Connection) -> list[PeerAccount]:
    """Return the account with every peer, whoever moved the most first. Raises: sqlite3.Error."""
    found: dict[bytes, list[tuple[str, str, int, int, int, int]]] = {}
    for peer_id, *sums in db.execute(
        "SELECT peer_id, role, state, count(*), sum(vouchered), sum(max(metered - vouchered, 0)), max(at_ms)"
        " FROM contract GROUP BY peer_id, role, state ORDER BY role, state"
    ):
        role, state, count, vouchered, unpaid, last_ms = sums
        found.setdefault(peer_id, []).append((role, state, count, vouchered, unpaid, last_ms))
    accounts = [_account(PeerId(peer_id), lines) for peer_id, lines in found.items()]
    return sorted(accounts, key=lambda it: (-(it.earned + it.spent), it.peer_id))


def _account(peer_id: PeerId, lines: list[tuple[str, str, int, int, int, int]]) -> PeerAccount:
    def total(role: Role, place: int, *, without: str = "") -> Microcredits:
        return Microcredits(sum(int(line[place]) for line in lines if line[0] == role and line[1] != without))

    def by_state(role: Role) -> dict[str, int]:
        return {line[1]: line[2] for line in lines if line[0] == role}

    return PeerAccount(
        peer_id=peer_id,
        earned=total("provider", 3),
        spent=total("requester", 3),
        unpaid_by_them=total("provider", 4, without=ProviderState.FAILED),
        unpaid_by_us=total("requester", 4),
        sold=by_state("provider"),
        bought=by_state("requester"),
        last_ms=UnixMs(max(line[5] for line in lines)),
    )


def entries_after(db: sqlite3.Connection, number: int, limit: int) -> list[ListedEntry]:
    """Return the next entries in the order of the ledger. Raises: sqlite3.Error."""
    found = db.execute(
        "SELECT seq, at_ms, kind, message_id, job_id, contract_id, peer_id, signer, envelope FROM entry"
        " WHERE seq > ? ORDER BY seq LIMIT ?",
        (number, limit),
    )
    return [_listed(fields) for fields in found]


def _listed(fields: tuple[Any, ...]) -> ListedEntry:  # as SQLite gives them; the table is STRICT
    number, at_ms, kind, message_id, job_id, contract_id, peer_id, signer, raw = fields
    sums = _sums(raw)
    return ListedEntry(
        number=number,
        at_ms=UnixMs(at_ms),
        kind=kind,
        message_id=message_id,
        job_id=job_id,
        contract_id=contract_id,
        peer_id=PeerId(peer_id),
        signer=PeerId(signer),
        tokens_in=sums.get("tokens_in"),
        tokens_out=sums.get("tokens_out"),
        cumulative=sums.get("cumulative"),
        envelope=raw,
    )


def _sums(raw: bytes) -> dict[str, int]:
    """Return the numbers of an envelope, unverified: an export shows what is stored, an audit judges it."""
    try:
        body = decode_untrusted(body_of_untrusted(raw), size_max=limits.BODY_BYTES_MAX)
    except RemoteProtocolError:
        return {}
    if not isinstance(body, dict):
        return {}
    return {name: value for name in SUMS if isinstance(value := body.get(name), int)}


def proofs(db: sqlite3.Connection, limit: int) -> list[StoredProof]:
    """Return the newest proofs first; none in a ledger from before there were any. Raises: sqlite3.Error."""
    if count_proofs(db) == 0:
        return []
    found = db.execute(
        "SELECT offender, kind, first_id, second_id, at_ms, proof FROM proof ORDER BY seq DESC LIMIT ?", (limit,)
    )
    return [
        StoredProof(
            offender=PeerId(offender),
            kind=kind,
            message_ids=(MessageId(first_id), MessageId(second_id)),
            at_ms=UnixMs(at_ms),
            proof=proof,
        )
        for offender, kind, first_id, second_id, at_ms, proof in found
    ]


def count_proofs(db: sqlite3.Connection) -> int:
    """Return how many proofs are kept. Raises: sqlite3.Error."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'proof'").fetchone() is None:
        return 0
    (count,) = db.execute("SELECT count(*) FROM proof").fetchone()
    return int(count)
