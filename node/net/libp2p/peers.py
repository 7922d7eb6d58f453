"""Names of peers and places: between libp2p's objects and ours.

A peer is its Ed25519 key (spec 02, section 1); libp2p also knows RSA and secp256k1 ids, which we do not speak to.
"""

from functools import lru_cache

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from node.errors import TransportError
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted, peer_id_to_text
from protocol.units import PeerId


@lru_cache(maxsize=4096)
def to_libp2p(peer_id: PeerId) -> ID:
    """Return libp2p's id of a peer."""
    return ID.from_base58(peer_id_to_text(peer_id))


@lru_cache(maxsize=4096)
def from_libp2p_untrusted(peer: ID) -> PeerId:
    """Return the key inside ``peer``; raises nothing but ``RemoteProtocolError``."""
    return peer_id_from_text_untrusted(peer.to_base58())


def parse_address(address: str) -> tuple[PeerId, Multiaddr]:
    """Split ``/ip4/…/tcp/…/p2p/…`` into whom and where.

    Raises: TransportError: not such an address; the message names it.
    """
    expected = f"expected /ip4|ip6|dns/<host>/tcp/<port>/p2p/<peer id>, got {address!r}"
    try:
        whole = Multiaddr(address)
        protocols = [part.name for part in whole.protocols()]
        peer_id = peer_id_from_text_untrusted(str(whole.value_for_protocol("p2p")))
    except RemoteProtocolError as exc:
        raise TransportError(f"{expected}: {exc}") from exc
    except Exception as exc:  # multiaddr raises a dozen unrelated classes on malformed text
        raise TransportError(expected) from exc
    if protocols[1:] != ["tcp", "p2p"]:
        raise TransportError(expected)
    return peer_id, whole.decapsulate(Multiaddr(f"/p2p/{peer_id_to_text(peer_id)}"))
