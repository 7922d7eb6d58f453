"""Who signs: Ed25519 keys, their checks, and the libp2p peer id that names them (spec 02, section 1).

A peer *is* its key: one key is the libp2p identity, the contract signer and the advert's author, so that the
secured channel authenticates the contract party.
"""

from functools import lru_cache
from typing import Final, Protocol

import base58
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import VerifyKey

from protocol.errors import Reason, RemoteProtocolError
from protocol.units import PeerId

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
KEYS_KEPT_MAX: Final = 4096

# Multihash "identity", 36 bytes: the libp2p protobuf PublicKey{Type: Ed25519, Data: 32 bytes}.
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")


class Signer(Protocol):
    """Holds a private key; ``node.keystore`` implements it."""

    @property
    def peer_id(self) -> PeerId: ...

    def sign(self, data: bytes) -> bytes: ...


def check_key_untrusted(key: bytes) -> PeerId:
    """Return ``key`` as a peer id, or refuse it with ``RemoteProtocolError``.

    Refused are low-order, mixed-order and non-canonical points. For the identity point one fixed signature
    verifies every message, so such a signer could disown or swap any contract; OpenSSL loads it without a word.
    """
    if len(key) != KEY_BYTES or not _is_good_point(key):
        raise RemoteProtocolError("not a canonical Ed25519 key of the main subgroup", reason=Reason.SIGNER)
    return PeerId(key)


@lru_cache(maxsize=KEYS_KEPT_MAX)
def _is_good_point(key: bytes) -> bool:
    # A peer's key comes with every message of its: the check takes half as long as a signature's.
    return bool(crypto_core_ed25519_is_valid_point(key))


def verify_untrusted(signer: PeerId, data: bytes, signature: bytes) -> None:
    """Refuse, with ``RemoteProtocolError``, a signature over ``data`` that is not ``signer``'s.

    libsodium verifies everywhere: two verifiers that differ on edge cases could disagree on one contract.
    """
    try:
        VerifyKey(signer).verify(data, signature)
    except (BadSignatureError, CryptoError, ValueError, TypeError) as exc:
        raise RemoteProtocolError("the signature does not verify", reason=Reason.SIGNATURE) from exc


def peer_id_to_text(peer_id: PeerId) -> str:
    """Return the libp2p form that users see, ``12D3KooW…``."""
    text: str = base58.b58encode(_PEER_ID_PREFIX + peer_id).decode("ascii")
    return text


def peer_id_from_text_untrusted(text: str) -> PeerId:
    """Return the key inside a ``12D3KooW…`` id; raises nothing but ``RemoteProtocolError``."""
    # An identity multihash of 38 bytes never takes more than 53 base58 digits.
    if not 0 < len(text) <= 64:
        raise RemoteProtocolError("not a peer id", reason=Reason.SIGNER)
    try:
        raw: bytes = base58.b58decode(text)
    except ValueError as exc:
        raise RemoteProtocolError("a peer id is base58 text", reason=Reason.SIGNER) from exc
    if not raw.startswith(_PEER_ID_PREFIX):
        raise RemoteProtocolError("only Ed25519 peer ids are spoken to", reason=Reason.SIGNER)
    peer_id = check_key_untrusted(raw[len(_PEER_ID_PREFIX) :])
    # The base58 library drops white space at the end: one peer would have several names.
    if peer_id_to_text(peer_id) != text:
        raise RemoteProtocolError("not a peer id in its one form", reason=Reason.SIGNER)
    return peer_id
