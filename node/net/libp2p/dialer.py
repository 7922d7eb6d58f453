"""Reaching a peer: known addresses, one dial at a time for each peer, and errors that say what was tried."""

from collections import OrderedDict
from collections.abc import Callable

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from node.errors import TransportError
from node.net import limits
from node.net.interface import PeerAddresses
from node.net.libp2p.peers import parse_address, to_libp2p
from protocol.identity import peer_id_to_text
from protocol.units import PeerId


class AddressBook:
    """Where peers said they listen; the least recently told one is forgotten first."""

    def __init__(self) -> None:
        self._known: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()

    def remember(self, peer: PeerAddresses) -> None:
        """Keep the usable ones of ``peer``'s addresses, instead of what was known."""
        usable = []
        for text in peer.addresses[: limits.ADDRESSES_PER_PEER_MAX]:
            try:
                named, where = parse_address(
                    text if "/p2p/" in text else f"{text}/p2p/{peer_id_to_text(peer.peer_id)}"
                )
            except TransportError:
                continue
            if named == peer.peer_id:
                usable.append(where)
        if not usable:
            return
        self._known[peer.peer_id] = tuple(usable)
        self._known.move_to_end(peer.peer_id)
        while len(self._known) > limits.KNOWN_PEERS_MAX:
            self._known.popitem(last=False)

    def find(self, peer_id: PeerId) -> tuple[Multiaddr, ...]:
        return self._known.get(peer_id, ())


class Dialer:
    """Connects one host to peers."""

    def __init__(self, host: BasicHost, book: AddressBook, *, is_refused: Callable[[PeerId], bool]) -> None:
        swarm = host.get_network()
        assert isinstance(swarm, Swarm)
        self._swarm = swarm
        self._host = host
        self._book = book
        self._is_refused = is_refused
        self._locks: dict[PeerId, trio.Lock] = {}

    async def dial(self, address: str) -> PeerId:
        """Connect to one address. Raises: TransportError: names it."""
        peer_id, where = parse_address(address)
        if peer_id_to_text(peer_id) == str(self._host.get_id()):
            raise TransportError(f"{address} is this node itself")
        await self._connect(peer_id, lambda: (where,))
        # A dial that worked is the best address there is.
        self._book.remember(PeerAddresses(peer_id=peer_id, addresses=(address,)))
        return peer_id

    async def connect(self, peer_id: PeerId) -> None:
        """Make sure that there is a connection. Raises: TransportError: names the peer and what was tried."""
        await self._connect(peer_id, lambda: self.addresses(peer_id))

    async def _connect(self, peer_id: PeerId, addresses: Callable[[], tuple[Multiaddr, ...]]) -> None:
        if self._is_refused(peer_id):
            raise TransportError(f"peer {peer_id_to_text(peer_id)} is refused by this node")
        peer = to_libp2p(peer_id)
        if self._is_connected(peer):
            return
        lock = self._locks.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                if not self._is_connected(peer):
                    await self._try_each(peer, addresses())
        finally:
            if not lock.locked():
                self._locks.pop(peer_id, None)

    def _is_connected(self, peer: ID) -> bool:
        return any(not connection.is_closed for connection in self._swarm.get_connections(peer))

    def addresses(self, peer_id: PeerId) -> tuple[Multiaddr, ...]:
        """Return where a peer may be: our own book first, then what identify and the DHT heard."""
        try:
            heard = self._host.get_peerstore().addrs(to_libp2p(peer_id))
        except PeerStoreError:
            heard = []
        found = {str(where).partition("/p2p/")[0]: None for where in (*self._book.find(peer_id), *heard)}
        return tuple(Multiaddr(text) for text in list(found)[: limits.ADDRESSES_PER_PEER_MAX])

    async def _try_each(self, peer: ID, addresses: tuple[Multiaddr, ...]) -> None:
        """Dial address by address: the library dials one for each transport, and no loopback beside others."""
        if not addresses:
            raise TransportError(f"no address of peer {peer} is known: dial it or remember one first")
        # A failed dial blocks the peer for 60 s, long after it is back. Ours go around it, lookups would not.
        self._swarm.unblock_peer(peer)
        failures = []
        for where in addresses:
            try:
                with trio.fail_after(limits.DIAL_S):
                    await self._swarm.dial_addr(where, peer)
            except (BaseLibp2pError, OSError, trio.TooSlowError) as exc:
                failures.append(f"{where}: {_reason(exc)}")
            else:
                self._host.get_peerstore().add_addrs(peer, [where], limits.ADDRESS_TTL_S)
                return
        raise TransportError(f"peer {peer} cannot be reached; tried {'; '.join(failures)}")


def _reason(exc: BaseException) -> str:
    """Return the innermost cause in words: the outer ones only say that a dial failed."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__} {exc}".strip()[:200]
