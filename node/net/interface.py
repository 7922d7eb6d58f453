"""What the rest of the daemon may ask of a network (spec 02).

Two implementations pass one conformance suite: ``node.net.libp2p`` and ``node.net.memory``. Peers are their
Ed25519 keys; whoever implements this authenticates them before a stream is handed out.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, Self

import trio

from protocol.units import PeerId


class Stream(Protocol):
    """One conversation with one authenticated peer, in frames. One task reads, one task writes."""

    @property
    def peer_id(self) -> PeerId:
        """The authenticated peer at the other end."""

    async def send_frame(self, frame: bytes) -> None:
        """Send one frame; waits for the peer's flow control.

        A cancelled send leaves the stream unusable: reset it. Raises: StreamLostError.
        """

    async def receive_frame(self, size_max: int) -> bytes | None:
        """Return the next frame, or None after the peer has finished its side.

        The length prefix is judged before anything is allocated. Cancelling is safe: nothing is lost.

        Raises:
            RemoteProtocolError: the prefix exceeds ``size_max``; the stream has been reset.
            StreamLostError: the stream ended without the peer's end frame.
        """

    async def finish(self) -> None:
        """Send the end frame and close our direction. Raises: StreamLostError."""

    async def reset(self) -> None:
        """Give the stream up at once; the peer sees it as lost. Never raises."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None:
        """Close: quietly after ``finish()``, by reset otherwise. Never raises."""


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Runs for each stream that a peer opens. The network closes the stream when it returns, and survives any
``Exception`` that leaves it: the stream is reset, the event is logged."""

GossipHandler = Callable[[PeerId, bytes], bool]
"""(forwarding peer, data) -> whether to pass it on to others. Synchronous and quick; must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddresses:
    """Where a peer says it listens: multiaddrs in text form. A hint, until the dial authenticates the peer."""

    peer_id: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRules:
    """How DHT records of one namespace are judged: ``/<namespace>/<name>`` keys only."""

    namespace: str
    is_valid: Callable[[str, bytes], bool]
    """(key, value) -> whether the value may be kept and returned under that key."""
    rank: Callable[[bytes], int]
    """Of several valid values, the one with the highest rank wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection to a peer."""

    address: str
    """The peer's end, as a multiaddr."""
    is_inbound: bool
    rtt_s: float | None
    """Of its newest keep-alive; None before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """How a peer can be reached, as far as this node knows."""

    addresses: tuple[str, ...] = ()
    connections: tuple[Connection, ...] = ()
    protocols: tuple[str, ...] = ()
    """What the peer said it speaks."""


class Network(Protocol):
    """A node's place in the network. Register handlers first, then ``await nursery.start(network.run)``."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Own multiaddrs, each ending in ``/p2p/<own id>``; empty until ``run`` has started."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; then no socket, task or stream is left.

        Raises: TransportError: an address cannot be listened on (it names the address).
        """

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Hand every inbound stream of ``protocol`` to ``handler``. Before ``run`` only."""

    def on_connected(self, callback: Callable[[PeerId], None]) -> None:
        """Call back, synchronously, on every new first connection to a peer. Before ``run`` only."""

    def refuse(self, is_refused: Callable[[PeerId], bool]) -> None:
        """Connect to nobody of whom this is true now, in either direction, and open no stream to him.

        Connections that stand are left alone: ``disconnect`` ends them. Before ``run`` only.
        """

    def subscribe(self, topic: str, handler: GossipHandler) -> None:
        """Hear a gossip topic. Own messages do not come back. Before ``run`` only."""

    def keep_records(self, rules: RecordRules) -> None:
        """Take part in the DHT for one namespace. Before ``run`` only."""

    async def dial(self, address: str) -> PeerId:
        """Connect to ``/ip4/…/tcp/…/p2p/…`` and return whom it was. Raises: TransportError (names the address)."""

    def remember(self, peer: PeerAddresses) -> None:
        """Keep where a peer may be dialled, for ``open_stream``."""

    async def open_stream(self, peer_id: PeerId, protocol: str) -> Stream:
        """Open a conversation, dialling the peer if need be. Raises: TransportError."""

    def connected_peers(self) -> frozenset[PeerId]: ...

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to the peer. Never raises."""

    async def ping(self, peer_id: PeerId) -> float:
        """Return in how many seconds a peer answered, once it is connected; dials it if need be.

        Waits for as long as the peer takes. Raises: TransportError.
        """

    def contact(self, peer_id: PeerId) -> Contact:
        """Return what is known of how a peer is reached; of one that is not known, nothing."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip ``data``; best effort, no delivery is promised. Raises: TransportError."""

    async def put_record(self, key: str, value: bytes) -> None:
        """Store a DHT record at the nodes nearest to its key. Raises: TransportError (no node took it)."""

    async def get_record(self, key: str) -> bytes | None:
        """Ask the network for a record; never answers from a local copy of somebody else's."""

    async def provide(self, key: str) -> None:
        """Say in the DHT that we have what ``key`` names. Raises: TransportError."""

    async def find_providers(self, key: str, limit: int) -> list[PeerAddresses]:
        """Return at most ``limit`` other peers that said so; may hold dead ones."""
