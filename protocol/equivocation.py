"""Equivocation: two signed messages by one key for one slot, a proof that anybody can check (spec 08, section 2).

Whether an output was bad or a peer was slow is one peer's word against another's. This is not: nobody but the
holder of the key can make it, so it is the only blame that travels. A proof is JSON like an evidence bundle:
``{"equivocation": kind, "network": hex, "messages": [{"type", "envelope": hex}, the other one]}``.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from protocol import limits
from protocol.advert import Advert
from protocol.contract import Accept
from protocol.encoding import Plain, decode_untrusted
from protocol.envelope import NETWORK_BYTES, Envelope, body_bytes_max, network_of_untrusted
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.evidence import BundleMessage
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.statement import Settled, Statement
from protocol.units import MessageId, NetworkId, PeerId
from protocol.voucher import Meter, Voucher

PROOF_BYTES_MAX: Final = 256 * limits.KIB
"""Two envelopes in hex take under 70 KiB; the rest is room for labels."""

# What makes a message the only one of its kind that its signer may sign. A contract, a quote or a cancel is in
# no slot: a requester may offer one job to several providers, and both of two cancels say the same.
SLOT_FIELDS: Final[dict[type[SignedMessage], tuple[str, ...]]] = {
    Advert: ("sequence",),
    Accept: ("contract_id",),
    Meter: ("contract_id", "number"),
    Voucher: ("contract_id", "number"),
    Receipt: ("contract_id",),
    Closing: ("contract_id",),
    Statement: ("first", "second", "number"),
    Settled: ("payer", "number"),
}

_FIELDS_OF_KIND: Final = {message_type.kind: fields for message_type, fields in SLOT_FIELDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place in which one key may sign one message."""

    kind: str
    signer: PeerId
    at: tuple[bytes | int, ...]
    """The values of ``SLOT_FIELDS``."""

    def key(self) -> bytes:
        """Return the slot as bytes: the same for one slot, different for two."""
        parts = (value if isinstance(value, bytes) else value.to_bytes(8, "big") for value in self.at)
        return b"\x00".join((self.kind.encode("ascii"), self.signer)) + b"\x00" + b"".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Two messages that one key signed for one slot, both read and verified."""

    network: NetworkId
    slot: Slot
    first: Signed[SignedMessage]
    second: Signed[SignedMessage]

    @property
    def offender(self) -> PeerId:
        return self.slot.signer

    @property
    def message_ids(self) -> tuple[MessageId, MessageId]:
        """Return both ids, the lower one first: one pair, one order."""
        low, high = sorted((self.first.message_id, self.second.message_id))
        return low, high


class _ProofFile(msgspec.Struct, frozen=True, kw_only=True):
    equivocation: Annotated[str, Meta(max_length=limits.TYPE_BYTES_MAX)]
    network: Annotated[str, Meta(min_length=64, max_length=64)]
    messages: Annotated[tuple[BundleMessage, ...], Meta(min_length=2, max_length=2)]


def slot_of(envelope: Envelope) -> Slot | None:
    """Return the slot that an opened envelope takes, or None: its type has none, or its body no such fields."""
    fields = _FIELDS_OF_KIND.get(envelope.kind)
    if fields is None:
        return None
    try:
        body = decode_untrusted(envelope.body, size_max=body_bytes_max(envelope.kind))
    except RemoteProtocolError:
        return None
    at = [_slot_value(body, name) for name in fields]
    if any(value is None for value in at):
        return None
    return Slot(kind=envelope.kind, signer=envelope.signer, at=tuple(value for value in at if value is not None))


def slot_of_signed(signed: Signed[SignedMessage]) -> Slot | None:
    """Return what ``slot_of`` returns for the envelope of a decoded message, without decoding it again."""
    fields = SLOT_FIELDS.get(type(signed.message))
    if fields is None:
        return None
    at = tuple(getattr(signed.message, name) for name in fields)
    return Slot(kind=signed.envelope.kind, signer=signed.signer, at=at)


def _slot_value(body: Plain, name: str) -> bytes | int | None:
    value = body.get(name) if isinstance(body, dict) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if 0 <= value < 1 << 63 else None
    return value if isinstance(value, bytes) else None


def prove(first: Signed[SignedMessage], second: Signed[SignedMessage]) -> Proof:
    """Return the proof in two verified messages. Raises: LocalProtocolError (they do not contradict)."""
    try:
        return _judge_untrusted(first, second)
    except RemoteProtocolError as exc:
        raise LocalProtocolError(str(exc), reason=exc.reason) from exc


def contradiction_untrusted(first: bytes, second: bytes) -> Proof:
    """Return the proof in two envelopes as they travelled; raises nothing but ``RemoteProtocolError``."""
    network = network_of_untrusted(first)
    read = [read_untrusted(raw, network=network, allowed=tuple(SLOT_FIELDS)) for raw in (first, second)]
    return _judge_untrusted(read[0], read[1])


def encode_proof(proof: Proof) -> bytes:
    """Return the JSON that ``verify_proof_untrusted`` reads."""
    return json.dumps(
        {
            "equivocation": proof.slot.kind,
            "network": proof.network.hex(),
            "messages": [
                {"type": signed.envelope.kind, "envelope": signed.envelope.raw.hex()}
                for signed in (proof.first, proof.second)
            ],
        }
    ).encode()


def is_proof(value: object) -> bool:
    """Return whether decoded JSON calls itself a proof rather than an evidence bundle."""
    return isinstance(value, dict) and "equivocation" in value


def verify_proof_untrusted(data: bytes) -> Proof:
    """Return the proof in a file; raises nothing but ``RemoteProtocolError``, which says what does not hold."""
    if len(data) > PROOF_BYTES_MAX:
        raise RemoteProtocolError(f"a proof of {len(data)} bytes", reason=Reason.SIZE)
    try:
        file = msgspec.json.decode(data, type=_ProofFile)
        network = bytes.fromhex(file.network)
        if len(network) != NETWORK_BYTES:
            raise ValueError(f"a network id has {NETWORK_BYTES} bytes")
        raws = [bytes.fromhex(item.envelope) for item in file.messages]
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"not a proof: {exc}", reason=Reason.ENCODING) from exc
    read = [read_untrusted(raw, network=NetworkId(network), allowed=tuple(SLOT_FIELDS)) for raw in raws]
    proof = _judge_untrusted(read[0], read[1])
    if file.equivocation != proof.slot.kind:
        raise _broken(f"the proof says {file.equivocation!r}, its messages are of type {proof.slot.kind!r}")
    return proof


def _judge_untrusted(first: Signed[SignedMessage], second: Signed[SignedMessage]) -> Proof:
    """Refuse, with ``RemoteProtocolError``, two messages that one honest key may have signed."""
    if first.signer != second.signer:
        raise RemoteProtocolError("the two messages are signed by different keys", reason=Reason.SIGNER)
    if first.envelope.kind != second.envelope.kind:
        raise _broken(f"a {first.envelope.kind} and a {second.envelope.kind} take different slots")
    # The id leaves the signature out: one text signed twice is one message.
    if first.message_id == second.message_id:
        raise _broken("both messages are the same one")
    slots = [slot_of(signed.envelope) for signed in (first, second)]
    if slots[0] is None or slots[0] != slots[1]:
        raise _broken(f"the two {first.envelope.kind}s are for different slots")
    networks = [network_of_untrusted(signed.envelope.raw) for signed in (first, second)]
    if networks[0] != networks[1]:
        raise RemoteProtocolError("the two messages are of different networks", reason=Reason.NETWORK)
    return Proof(network=networks[0], slot=slots[0], first=first, second=second)


def _broken(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=Reason.MEANING)
