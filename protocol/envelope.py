"""Signed envelopes: what is signed is the bytes that travel, never a re-encoding (spec 01, section 2).

``envelope = [1, type, network, signer, body, signature]`` in canonical msgpack; the body is canonical msgpack
itself. The id of a message is the hash of what was signed and by whom: an Ed25519 signer can make many valid
signatures for one text, so nothing may be keyed on the signature.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from protocol import limits
from protocol.encoding import Plain, decode_untrusted, encode
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.identity import KEY_BYTES, SIGNATURE_BYTES, Signer, check_key_untrusted, verify_untrusted
from protocol.units import MessageId, NetworkId, PeerId

VERSION: Final = 1
SIGNATURE_DOMAIN: Final = b"souk.sig.v1\x00"
NETWORK_DOMAIN: Final = b"souk.network\x00"
NETWORK_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message as it travelled. ``raw`` is what is stored and shown as evidence."""

    kind: str
    signer: PeerId
    body: bytes
    message_id: MessageId
    raw: bytes


def network_id(config: dict[str, Plain]) -> NetworkId:
    """Return the id of the network with this configuration: every testnet differs, no message crosses over."""
    return NetworkId(sha256(NETWORK_DOMAIN + encode(dict(config))).digest())


def body_bytes_max(kind: str) -> int:
    """Return the bound on the body of a message of this type."""
    return limits.ADVERT_BYTES_MAX if kind == "advert" else limits.BODY_BYTES_MAX


def seal(kind: str, body: Plain, *, network: NetworkId, signer: Signer) -> Envelope:
    """Encode, bound and sign ``body``.

    Raises:
        LocalProtocolError: the body is longer than its type allows, or has no canonical form.
    """
    data = encode(body)
    if len(data) > body_bytes_max(kind):
        raise LocalProtocolError(
            f"{kind}: a body of {len(data)} bytes, at most {body_bytes_max(kind)} may travel",
            reason=Reason.SIZE,
        )
    signed = _signed_bytes(kind, network, data)
    raw = encode([VERSION, kind, network, signer.peer_id, data, signer.sign(signed)])
    return Envelope(kind=kind, signer=signer.peer_id, body=data, message_id=_id(signed, signer.peer_id), raw=raw)


def open_untrusted(raw: bytes, *, network: NetworkId, kinds: frozenset[str]) -> Envelope:
    """Return the envelope in ``raw`` once shape, network, type and signature hold.

    Cheap checks come first; the signature is the last one, the body's schema the caller's next. Raises nothing
    but ``RemoteProtocolError``.
    """
    fields = decode_untrusted(raw, size_max=limits.BODY_BYTES_MAX + limits.ENVELOPE_OVERHEAD_BYTES_MAX)
    match fields:
        case [int(version), str(kind), bytes(net), bytes(key), bytes(body), bytes(signature)]:
            pass
        case _:
            raise RemoteProtocolError("not an envelope of six fields", reason=Reason.ENVELOPE)
    if version != VERSION or isinstance(version, bool):
        raise RemoteProtocolError(f"envelope version {version}, this node reads {VERSION}", reason=Reason.ENVELOPE)
    if net != network:
        raise RemoteProtocolError("a message of another network", reason=Reason.NETWORK)
    if kind not in kinds:
        raise RemoteProtocolError("a message of this type is not allowed here", reason=Reason.TYPE)
    if len(body) > body_bytes_max(kind):
        raise RemoteProtocolError(f"{kind}: a body of {len(body)} bytes", reason=Reason.SIZE)
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise RemoteProtocolError("a key has 32 bytes and a signature 64", reason=Reason.ENVELOPE)
    signer = check_key_untrusted(key)
    signed = _signed_bytes(kind, NetworkId(net), body)
    verify_untrusted(signer, signed, signature)
    return Envelope(kind=kind, signer=signer, body=body, message_id=_id(signed, signer), raw=raw)


def network_of_untrusted(raw: bytes) -> NetworkId:
    """Return the network that an envelope names, unverified; raises nothing but ``RemoteProtocolError``."""
    network, _body = _parts_untrusted(raw)
    if len(network) != NETWORK_BYTES:
        raise RemoteProtocolError(f"a network id has {NETWORK_BYTES} bytes", reason=Reason.ENVELOPE)
    return NetworkId(network)


def body_of_untrusted(raw: bytes) -> bytes:
    """Return an envelope's body, unverified and not decoded; raises nothing but ``RemoteProtocolError``."""
    return _parts_untrusted(raw)[1]


def _parts_untrusted(raw: bytes) -> tuple[bytes, bytes]:
    """Return network and body of what looks like an envelope; raises nothing but ``RemoteProtocolError``."""
    match decode_untrusted(raw, size_max=limits.BODY_BYTES_MAX + limits.ENVELOPE_OVERHEAD_BYTES_MAX):
        case [int(), str(), bytes(network), bytes(), bytes(body), bytes()]:
            return network, body
        case _:
            raise RemoteProtocolError("not an envelope of six fields", reason=Reason.ENVELOPE)


def _signed_bytes(kind: str, network: NetworkId, body: bytes) -> bytes:
    name = kind.encode("ascii")
    assert 0 < len(name) <= limits.TYPE_BYTES_MAX
    return SIGNATURE_DOMAIN + bytes([len(name)]) + name + network + sha256(body).digest()


def _id(signed: bytes, signer: PeerId) -> MessageId:
    return MessageId(sha256(signed + signer).digest())
