"""What the control API shows of the ledger; commands that read the file themselves show the same forms.

Keys are added, never renamed or removed, as in ``views.py``.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from node.api.views import View
from node.ledger.audit import Audit
from node.ledger.books import ListedEntry, PeerAccount
from node.ledger.entries import StoredProof
from node.ledger.settlement import ListedStatement, SettlementEnvelopes
from node.market.settlement_exchange import Outcome
from protocol import limits
from protocol.identity import peer_id_to_text
from protocol.statement import Parties
from protocol.units import PeerId


class PeerAccountView(View, frozen=True, kw_only=True):
    """What passed between this node and one peer, in µc; contracts by state, as provider and as requester."""

    peer_id: str
    earned_microcredits: int
    spent_microcredits: int
    unpaid_by_them_microcredits: int
    unpaid_by_us_microcredits: int
    sold: dict[str, int]
    bought: dict[str, int]
    last_ms: int


class LedgerAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    earned_microcredits: int
    spent_microcredits: int
    unpaid_by_them_microcredits: int
    unpaid_by_us_microcredits: int
    proofs: int
    """Proofs of equivocation kept."""
    peers: tuple[PeerAccountView, ...]


class PeerAccountAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer: PeerAccountView


class EntryView(View, frozen=True, kw_only=True):
    """One signed message in the order of the ledger; the numbers are None where its type has none."""

    number: int
    at_ms: int
    kind: str
    message_id: str
    job_id: str
    contract_id: str | None
    peer_id: str
    signer: str
    tokens_in: int | None
    tokens_out: int | None
    cumulative_microcredits: int | None
    envelope: str


class EntriesAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    entries: tuple[EntryView, ...]


class DifferenceView(View, frozen=True, kw_only=True):
    where: str
    field: str
    stored: str
    expected: str


class AuditAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    holds: bool
    entries: int
    contracts: int
    proofs: int
    differences: tuple[DifferenceView, ...]
    differences_total: int


class ProofView(View, frozen=True, kw_only=True):
    offender: str
    kind: str
    message_ids: tuple[str, ...]
    at_ms: int
    proof: dict[str, Any]  # Any: JSON, its form is the protocol's
    """What ``souk receipts verify`` reads."""


class ProofsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    count: int
    proofs: tuple[ProofView, ...]


class StatementView(View, frozen=True, kw_only=True):
    """One statement with a peer, in cumulative µc."""

    peer_id: str
    number: int
    promised_by_them_microcredits: int
    promised_by_us_microcredits: int
    netted_microcredits: int
    settled_by_them_microcredits: int
    settled_by_us_microcredits: int
    signed_by_both: bool
    made_at_ms: int


class StatementsAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    statements: tuple[StatementView, ...]


class SettlementAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    bundle: dict[str, Any]  # Any: as a proof's
    """What ``souk receipts verify`` reads."""


class EntriesQuery(View, frozen=True, kw_only=True):
    after: Annotated[int, Meta(ge=0, lt=10**18)] = 0
    """The number of the last entry that is known."""


class StatementsQuery(View, frozen=True, kw_only=True):
    peer: str | None = None


class SettleRequest(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer_id: str
    amount_microcredits: Annotated[int, Meta(ge=0, le=limits.MICROCREDITS_MAX)] = 0
    """What the peer has just paid by other means."""


class SettleAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer_id: str
    number: int
    statements_new: int
    acknowledged_microcredits: int
    promised_by_them_microcredits: int
    promised_by_us_microcredits: int
    settled_by_them_microcredits: int
    settled_by_us_microcredits: int


def peer_account_view(account: PeerAccount) -> PeerAccountView:
    return PeerAccountView(
        peer_id=peer_id_to_text(account.peer_id),
        earned_microcredits=account.earned,
        spent_microcredits=account.spent,
        unpaid_by_them_microcredits=account.unpaid_by_them,
        unpaid_by_us_microcredits=account.unpaid_by_us,
        sold=account.sold,
        bought=account.bought,
        last_ms=account.last_ms,
    )


def ledger_answer(accounts: Sequence[PeerAccount], proofs: int) -> LedgerAnswer:
    """Return all accounts and their sums."""
    return LedgerAnswer(
        earned_microcredits=sum(it.earned for it in accounts),
        spent_microcredits=sum(it.spent for it in accounts),
        unpaid_by_them_microcredits=sum(it.unpaid_by_them for it in accounts),
        unpaid_by_us_microcredits=sum(it.unpaid_by_us for it in accounts),
        proofs=proofs,
        peers=tuple(peer_account_view(it) for it in accounts),
    )


def entries_answer(entries: Sequence[ListedEntry]) -> EntriesAnswer:
    return EntriesAnswer(
        entries=tuple(
            EntryView(
                number=it.number,
                at_ms=it.at_ms,
                kind=it.kind,
                message_id=it.message_id.hex(),
                job_id=it.job_id.hex(),
                contract_id=None if it.contract_id is None else it.contract_id.hex(),
                peer_id=peer_id_to_text(it.peer_id),
                signer=peer_id_to_text(it.signer),
                tokens_in=it.tokens_in,
                tokens_out=it.tokens_out,
                cumulative_microcredits=it.cumulative,
                envelope=it.envelope.hex(),
            )
            for it in entries
        )
    )


def audit_answer(audit: Audit) -> AuditAnswer:
    return AuditAnswer(
        holds=audit.holds,
        entries=audit.entries,
        contracts=audit.contracts,
        proofs=audit.proofs,
        differences=tuple(
            DifferenceView(where=it.where, field=it.field, stored=it.stored, expected=it.expected)
            for it in audit.differences
        ),
        differences_total=audit.differences_total,
    )


def proofs_answer(count: int, proofs: Sequence[StoredProof]) -> ProofsAnswer:
    return ProofsAnswer(
        count=count,
        proofs=tuple(
            ProofView(
                offender=peer_id_to_text(it.offender),
                kind=it.kind,
                message_ids=tuple(message_id.hex() for message_id in it.message_ids),
                at_ms=it.at_ms,
                proof=msgspec.json.decode(it.proof),
            )
            for it in proofs
        ),
    )


def statements_answer(found: Sequence[ListedStatement]) -> StatementsAnswer:
    return StatementsAnswer(statements=tuple(_statement(it) for it in found))


def _statement(listed: ListedStatement) -> StatementView:
    made, them = listed.statement, listed.peer_id
    us = Parties(first=PeerId(made.first), second=PeerId(made.second)).other(them)
    return StatementView(
        peer_id=peer_id_to_text(them),
        number=made.number,
        promised_by_them_microcredits=made.promised_by(them),
        promised_by_us_microcredits=made.promised_by(us),
        netted_microcredits=made.netted,
        settled_by_them_microcredits=made.settled_by(them),
        settled_by_us_microcredits=made.settled_by(us),
        signed_by_both=listed.is_signed_by_both,
        made_at_ms=made.made_at_ms,
    )


def settlement_answer(found: SettlementEnvelopes) -> SettlementAnswer:
    return SettlementAnswer(bundle=msgspec.json.decode(found.encode()))


def settle_answer(outcome: Outcome) -> SettleAnswer:
    return SettleAnswer(
        peer_id=peer_id_to_text(outcome.peer_id),
        number=outcome.number,
        statements_new=outcome.statements,
        acknowledged_microcredits=outcome.acknowledged,
        promised_by_them_microcredits=outcome.earned,
        promised_by_us_microcredits=outcome.promised,
        settled_by_them_microcredits=outcome.received,
        settled_by_us_microcredits=outcome.paid,
    )
