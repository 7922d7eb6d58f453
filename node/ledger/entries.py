"""What goes into the ledger and what comes out: plain values, no SQL."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from protocol.envelope import Envelope
from protocol.states import ProviderState, RequesterState
from protocol.units import JobId, MessageId, Microcredits, ModelId, PeerId, UnixMs

Role: TypeAlias = Literal["requester", "provider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One signed message as it was sent or received. Posting the same message twice is one entry."""

    envelope: Envelope
    job_id: JobId
    peer_id: PeerId
    """The other party."""
    contract_id: MessageId | None
    """None before there is a contract: asks and quotes."""
    at_ms: UnixMs
    slot: bytes | None = None
    """The key of its slot where the poster has the message decoded; else it is read from the envelope again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRow:
    """Where one contract stands; the newest row replaces the one before."""

    contract_id: MessageId
    job_id: JobId
    role: Role
    """What this node is in it."""
    peer_id: PeerId
    model_id: ModelId
    model: str
    state: ProviderState | RequesterState
    tokens_in: int
    tokens_out: int
    metered: Microcredits
    vouchered: Microcredits
    at_ms: UnixMs
    energy_millijoules: int | None = None
    """What it took of our own device: measured and signed by nobody; None where that is unknown, or not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """An entry read back, in the order in which it was written."""

    kind: str
    sender: Role
    at_ms: UnixMs
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over all contracts of this node."""

    earned: Microcredits
    spent: Microcredits


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProof:
    """Two messages that one key signed for one slot (spec 08, section 2)."""

    offender: PeerId
    kind: str
    message_ids: tuple[MessageId, MessageId]
    """The lower one first."""
    at_ms: UnixMs
    """When the second one came."""
    proof: bytes
    """The JSON that ``protocol.equivocation`` verifies."""
