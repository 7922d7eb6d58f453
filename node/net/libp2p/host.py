"""The libp2p host as a daemon needs it: TCP, Noise and Yamux only, and nothing that a peer can wear out.

Built here and nowhere else. Stock ``new_host()`` also offers plaintext, keeps every inbound slot for ever, and
ends with the first exception that leaves a stream handler.
"""

import ipaddress
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import psutil
import trio
from libp2p import generate_peer_id_from
from libp2p.abc import IMuxedConn, INetConn, INetStream, INetwork, INotifee, IRawConnection
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.rcmgr import Direction
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.manager import TransportManager
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from node.net import limits
from node.net.interface import Connection
from node.net.libp2p.peers import from_libp2p_untrusted
from node.net.libp2p.yamux import SafeYamux
from protocol.errors import RemoteProtocolError
from protocol.units import PeerId

log = logging.getLogger(__name__)


class _ConnectionEndedError(Exception):
    """An inbound connection has ended: its caller closes the socket and gives the slot back."""


class DaemonSwarm(Swarm):
    """A swarm whose inbound slots come back, and whose handshakes are counted for each source."""

    def __init__(
        self,
        *args: object,
        on_rtt: Callable[[float], None],
        is_refused: Callable[[PeerId], bool],
        **kwargs: object,
    ) -> None:
        """``on_rtt`` is told, in seconds, of each ping that a peer answered; nobody refused gets a connection."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # handed through unchanged
        self._on_rtt = on_rtt
        self._is_refused = is_refused
        self._inbound_limiter = trio.CapacityLimiter(limits.CONNECTIONS_MAX)
        self._handshakes: Counter[str] = Counter()

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """Authenticate an inbound connection, then hold its slot for as long as it lives.

        Stock holds slot and task until shutdown: after 250 inbound connections *ever*, it refused all others.
        """
        source = _source_of(raw_conn)
        if self._handshakes[source] >= limits.HANDSHAKES_PER_SOURCE_MAX:
            await raw_conn.close()
            raise SwarmException(f"{source} has too many handshakes open")
        self._handshakes[source] += 1
        try:
            muxed = await super().upgrade_inbound_raw_conn(raw_conn, maddr)
        finally:
            self._handshakes[source] -= 1
            if not self._handshakes[source]:
                del self._handshakes[source]
        assert isinstance(muxed, SafeYamux)
        await muxed.event_closed.wait()
        raise _ConnectionEndedError

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Refuse whom the node refuses, and peers that are no Ed25519 key: nothing here could name them."""
        try:
            self._check_refused(muxed_conn.peer_id)
        except SwarmException:
            await muxed_conn.close()
            raise
        assert isinstance(muxed_conn, SafeYamux)
        muxed_conn.on_rtt = self._on_rtt
        added = await super().add_conn(muxed_conn, direction)
        try:
            # Refused while it was being added: whoever disconnected the peer did not see this one.
            self._check_refused(muxed_conn.peer_id)
        except SwarmException:
            await added.close()
            raise
        return added

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Dial nobody who would be refused; the library's own look-ups come this way."""
        self._check_refused(peer_id)
        return await super().dial_peer(peer_id)

    def _check_refused(self, peer: ID) -> None:
        """Raises: SwarmException."""
        try:
            if self._is_refused(from_libp2p_untrusted(peer)):
                raise SwarmException(f"peer {peer} is refused by this node")
        except RemoteProtocolError as exc:
            raise SwarmException(f"peer {peer} is refused: {exc}") from exc

    async def _open_stream_on_connection(
        self, connection: INetConn, connections: list[INetConn], peer_id: ID
    ) -> INetStream:
        """Open whole or not at all: stock leaks the stream and its slot when an open is cancelled.

        Short: one small frame, bounded by the write deadline of the connection.
        """
        with trio.CancelScope(shield=True):
            stream = await super()._open_stream_on_connection(connection, connections, peer_id)
        return stream  # noqa: RET504 (mypy takes a cancel scope for one that may swallow the return)

    async def close_peer(self, peer_id: ID) -> None:
        """Close the connections that this peer has now; each leaves the list as it closes.

        Stock then drops the whole list: a connection that came meanwhile lived on, known to nobody, and held its
        slot for as long as the peer wanted.
        """
        for connection in self.get_connections(peer_id):
            await self._close_connection_async(connection)

    async def close(self) -> None:
        """Close all connections at once; stock takes 0.2 s for each, one after the other."""
        async with trio.open_nursery() as nursery:
            for connection in self.get_connections():
                nursery.start_soon(self._close_connection_async, connection)
        await super().close()


class DaemonHost(BasicHost):
    """A host that tells when identify has finished, and survives any handler."""

    def __init__(
        self, swarm: DaemonSwarm, *, renamed: dict[TProtocol, TProtocol], on_identified: Callable[[ID], None]
    ) -> None:
        """``renamed`` protocols of the library go by another name on the wire."""
        self._renamed = renamed
        self._on_identified = on_identified
        self._inbound_streams: Counter[ID] = Counter()
        super().__init__(network=swarm, addrs_factory=expand_wildcards, disable_identify_address_discovery=True)

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        super().set_stream_handler(self._renamed.get(protocol_id, protocol_id), stream_handler)

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        return await super().new_stream(peer_id, [self._renamed.get(name, name) for name in protocol_ids])

    async def _identify_peer(self, peer_id: ID, *, reason: str) -> None:
        await super()._identify_peer(peer_id, reason=reason)
        self._on_identified(peer_id)

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        """Guard every inbound stream, ours and the library's.

        An exception that leaves a handler ends the stock host, or cancels all streams of the connection. With the
        guard, garbage on the pubsub and DHT protocols is the sender's loss only.
        """
        peer = net_stream.muxed_conn.peer_id
        if self._inbound_streams[peer] >= limits.STREAMS_PER_PEER_MAX:
            await net_stream.reset()
            return
        self._inbound_streams[peer] += 1
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as exc:  # the edge of one inbound stream: a peer must not end the daemon
            log.debug("net_stream_failed", extra={"peer": str(peer), "cause": repr(exc)})
            with trio.move_on_after(limits.CLOSE_WRITE_S, shield=True):
                await net_stream.reset()
        finally:
            self._inbound_streams[peer] -= 1
            if not self._inbound_streams[peer]:
                del self._inbound_streams[peer]


class ConnectionWatcher(INotifee):
    """Tells of each peer's first connection."""

    def __init__(self, on_first: Callable[[ID], None]) -> None:
        self._on_first = on_first
        self._present: set[ID] = set()

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        # Not "has one connection": when both sides dial, both may be registered before either is told.
        if peer not in self._present:
            self._present.add(peer)
            self._on_first(peer)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        peer = conn.muxed_conn.peer_id
        if peer not in network.connections:
            self._present.discard(peer)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        return

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        return

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        return

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        return


def build_host(
    seed: bytes,
    *,
    renamed: dict[TProtocol, TProtocol],
    on_identified: Callable[[ID], None],
    on_rtt: Callable[[float], None],
    is_refused: Callable[[PeerId], bool],
) -> DaemonHost:
    """Make a host whose identity is the Ed25519 key of ``seed``; nothing listens yet."""
    key_pair = create_new_key_pair(seed)
    peer_id = generate_peer_id_from(key_pair)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    noise = NoiseTransport(key_pair, noise_privkey=create_x25519_key_pair().private_key)
    upgrader = TransportUpgrader(
        # Noise and nothing else: a default host also talks plaintext to whoever asks.
        secure_transports_by_protocol={NOISE: noise},
        muxer_transports_by_protocol={TProtocol(yamux.PROTOCOL_ID): SafeYamux},
    )
    swarm = DaemonSwarm(
        peer_id,
        peerstore,
        upgrader,
        transports=[TCP()],
        retry_config=RetryConfig(max_retries=0),
        connection_config=ConnectionConfig(
            max_connections=limits.CONNECTIONS_MAX,
            # Off: the auto-connector dials every peer it has heard of, up to 200 connections.
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.CONNECTIONS_MAX,
            max_connections_per_peer=limits.CONNECTIONS_PER_PEER_MAX,
            inbound_upgrade_timeout=limits.HANDSHAKE_S,
            outbound_upgrade_timeout=limits.HANDSHAKE_S,
            inbound_stream_protocol_negotiation_timeout=limits.OPEN_S,
            outbound_stream_protocol_negotiation_timeout=limits.OPEN_S,
        ),
        transport_manager=TransportManager(),
        on_rtt=on_rtt,
        is_refused=is_refused,
    )
    return DaemonHost(swarm, renamed=renamed, on_identified=on_identified)


def expand_wildcards(addresses: list[Multiaddr]) -> list[Multiaddr]:
    """Replace 0.0.0.0 and :: by the addresses of this host's interfaces, loopback only if there is no other."""
    expanded: dict[str, Multiaddr] = {}
    for address in addresses:
        family, host, rest = str(address).split("/", 3)[1:]
        for own in _interface_addresses(family) if host in ("0.0.0.0", "::") else [host]:  # noqa: S104 (compared)
            text = f"/{family}/{own}/{rest}"
            expanded[text] = Multiaddr(text)
    return list(expanded.values())


def _interface_addresses(family: str) -> list[str]:
    wanted = 4 if family == "ip4" else 6
    found = []
    for interface in psutil.net_if_addrs().values():
        for entry in interface:
            try:
                parsed = ipaddress.ip_address(entry.address)
            except ValueError:
                continue
            if parsed.version == wanted and not parsed.is_link_local:
                found.append(parsed)
    return [str(own) for own in found if not own.is_loopback] or [str(own) for own in found]


def connection_of(found: INetConn) -> Connection:
    """Return one connection in the words of ``node.net.interface``."""
    assert isinstance(found, SwarmConn) and isinstance(found.muxed_conn, SafeYamux)
    remote = found.muxed_conn.get_remote_address()
    host, port = ("unknown", 0) if remote is None else remote
    return Connection(
        address=f"/{'ip6' if ':' in host else 'ip4'}/{host.split('%')[0]}/tcp/{port}",
        is_inbound=found.direction is Direction.INBOUND,
        # The library says 0 before the first.
        rtt_s=found.muxed_conn.rtt() or None,
    )


def _source_of(raw_conn: IRawConnection) -> str:
    """Name whose handshake this is: the IPv4 address, or the /64 that one IPv6 customer owns."""
    remote = raw_conn.get_remote_address()
    if remote is None:
        return "unknown"
    address = ipaddress.ip_address(remote[0].split("%")[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
