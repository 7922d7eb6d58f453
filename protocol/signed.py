"""Signed messages: a typed body and the envelope it travelled in, made and read in one step (spec 01, 03)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from protocol.encoding import decode_untrusted
from protocol.envelope import Envelope, body_bytes_max, open_untrusted, seal
from protocol.errors import Reason, RemoteProtocolError
from protocol.identity import Signer
from protocol.schema import Message, to_message_untrusted, to_plain
from protocol.units import MessageId, NetworkId, PeerId


class SignedMessage(Message, frozen=True, kw_only=True):
    """Base of every message that travels in an envelope; ``kind`` is its type on the wire."""

    kind: ClassVar[str]


S = TypeVar("S", bound=SignedMessage)
S_co = TypeVar("S_co", bound=SignedMessage, covariant=True)


@dataclass(frozen=True, slots=True)
class Signed(Generic[S_co]):
    """A message with its proof: whoever holds ``envelope.raw`` can show who said it."""

    message: S_co
    envelope: Envelope

    @property
    def message_id(self) -> MessageId:
        return self.envelope.message_id

    @property
    def signer(self) -> PeerId:
        return self.envelope.signer


def sign(message: S, *, network: NetworkId, signer: Signer) -> Signed[S]:
    """Seal a message of ours. Raises: LocalProtocolError (it breaks its own schema or bound)."""
    return Signed(message, seal(message.kind, to_plain(message), network=network, signer=signer))


def read_untrusted(raw: bytes, *, network: NetworkId, allowed: Iterable[type[S]]) -> Signed[S]:
    """Return the message in ``raw`` if it is one of the types allowed here.

    Raises nothing but ``RemoteProtocolError``. Time bounds and meaning are the caller's to judge.
    """
    kinds = {message_type.kind: message_type for message_type in allowed}
    envelope = open_untrusted(raw, network=network, kinds=frozenset(kinds))
    return Signed(body_untrusted(envelope, kinds[envelope.kind]), envelope)


def body_untrusted(envelope: Envelope, message_type: type[S]) -> S:
    """Return the typed body of an opened envelope; raises nothing but ``RemoteProtocolError``."""
    assert envelope.kind == message_type.kind
    plain = decode_untrusted(envelope.body, size_max=body_bytes_max(envelope.kind))
    return to_message_untrusted(plain, message_type)


def require_signer_untrusted(signed: Signed[S], expected: PeerId) -> None:
    """Refuse, with ``RemoteProtocolError``, a message that somebody else than ``expected`` signed."""
    if signed.signer != expected:
        raise RemoteProtocolError(
            f"{signed.message.kind}: signed by another key than the party it speaks for", reason=Reason.SIGNER
        )
