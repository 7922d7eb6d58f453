"""What exists only while the network runs: the host, its services, and the tasks that look after them."""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.common import PROTOCOL_ID as DHT_PROTOCOL
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from node.errors import TransportError
from node.metrics import GOSSIP, Metrics
from node.net import limits
from node.net.interface import Contact, GossipHandler, RecordRules, StreamHandler
from node.net.libp2p.dht import RecordTable
from node.net.libp2p.dialer import AddressBook, Dialer
from node.net.libp2p.host import ConnectionWatcher, build_host, connection_of
from node.net.libp2p.inbound import InboundStreams
from node.net.libp2p.peers import from_libp2p_untrusted, to_libp2p
from node.net.libp2p.pubsub import build_pubsub
from node.net.libp2p.stream import LibP2pStream
from protocol.units import PeerId

log = logging.getLogger(__name__)

_NEWCOMERS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What was registered before ``run``."""

    dht_protocol: TProtocol
    """What this network's nodes, and no others, call the DHT."""
    handlers: dict[str, StreamHandler]
    callbacks: list[Callable[[PeerId], None]]
    topics: dict[str, GossipHandler]
    rules: list[RecordRules]
    refusals: list[Callable[[PeerId], bool]]

    def is_refused(self, peer_id: PeerId) -> bool:
        return any(is_refused(peer_id) for is_refused in self.refusals)


class Live:
    """One run of a network."""

    def __init__(self, seed: bytes, registered: Registered, book: AddressBook, *, metrics: Metrics) -> None:
        self.host = build_host(
            seed,
            renamed={DHT_PROTOCOL: registered.dht_protocol},
            on_identified=self._admit_member,
            on_rtt=metrics.peer_answered,
            is_refused=registered.is_refused,
        )
        self.gossip = metrics.wire(GOSSIP)
        self.pubsub, self.router = build_pubsub(self.host, registered.topics, self.gossip)
        self._metrics = metrics
        self.records = RecordTable(self.host, registered.rules, is_member=self._is_member)
        self.dialer = Dialer(self.host, book, is_refused=registered.is_refused)
        self._registered = registered
        self._inbound = InboundStreams(self.wrap)
        self._newcomers_in, self._newcomers = trio.open_memory_channel[ID](_NEWCOMERS_MAX)
        self._lingering_in, self._lingering = trio.open_memory_channel[LibP2pStream](limits.LINGERING_MAX)

    async def run(self, listen: tuple[str, ...], task_status: trio.TaskStatus[None]) -> None:
        """Listen and serve until cancelled. Raises: TransportError: an address cannot be listened on."""
        refused: list[str] = []
        stop = trio.Event()
        async with trio.open_nursery() as nursery:

            async def run_host() -> None:
                # The library cannot be cancelled: a connection whose close is cancelled half-way counts as closed
                # and keeps its socket, so that the peer talks to a ghost. It is asked to stop instead.
                with trio.CancelScope(shield=True):
                    refused.extend(await self._run_host(listen, stop, task_status))
                nursery.cancel_scope.cancel()

            nursery.start_soon(run_host)
            try:
                await trio.sleep_forever()
            finally:
                stop.set()
        if refused:
            # Outside of the nurseries, which would wrap it into a group.
            raise TransportError(f"cannot listen on {', '.join(refused)}: not a TCP address, or taken meanwhile")

    async def _run_host(
        self, listen: tuple[str, ...], stop: trio.Event, task_status: trio.TaskStatus[None]
    ) -> list[str]:
        async with self.host.run([Multiaddr(address) for address in listen]):
            # The library raises nothing when it cannot listen.
            listeners = self.host.get_network().listeners
            refused = [address for address in listen if str(Multiaddr(address)) not in listeners]
            if not refused:
                await self._serve(stop, task_status)
            await self._close()
        return refused

    async def _serve(self, stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        for protocol, handler in self._registered.handlers.items():
            serve = partial(self._inbound.serve, protocol, handler)
            self.host.set_stream_handler(TProtocol(protocol), serve)
        self.host.get_network().register_notifee(ConnectionWatcher(self._greet))
        async with AsyncExitStack() as services:
            for service in (self.pubsub, self.router, self.records.service):
                await services.enter_async_context(background_trio_service(service))
            await self.pubsub.wait_until_ready()
            for topic in self._registered.topics:
                await self.pubsub.subscribe(topic)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._admit_all)
                nursery.start_soon(self._linger_all)
                task_status.started()
                await stop.wait()
                nursery.cancel_scope.cancel()
            # Before the services stop: their tasks would find no nursery. Leaving the library's contexts alone
            # leaves sockets open.
            await self._close()

    async def _close(self) -> None:
        with trio.move_on_after(limits.CLOSE_S):
            await self.host.close()

    def wrap(self, inner: INetStream, protocol: str) -> LibP2pStream:
        """Put frames on a stream of the library's, of one of our own protocols."""
        assert isinstance(inner, NetStream)
        peer_id = from_libp2p_untrusted(inner.muxed_conn.peer_id)
        return LibP2pStream(inner, peer_id, linger=self._linger, wire=self._metrics.wire(protocol))

    def contact(self, peer_id: PeerId) -> Contact:
        """Return how a peer can be reached, and is."""
        peer = to_libp2p(peer_id)
        try:
            protocols = self.host.get_peerstore().get_protocols(peer)
        except PeerStoreError:
            protocols = []
        return Contact(
            addresses=tuple(map(str, self.dialer.addresses(peer_id))),
            connections=tuple(
                connection_of(it) for it in self.host.get_network().get_connections(peer) if not it.is_closed
            ),
            protocols=tuple(sorted(protocols)),
        )

    def _greet(self, peer: ID) -> None:
        peer_id = from_libp2p_untrusted(peer)
        for callback in self._registered.callbacks:
            callback(peer_id)
        # Identify is not repeated for a peer that it knows from before.
        self._admit_member(peer)

    def _admit_member(self, peer: ID) -> None:
        """Queue a peer for the DHT, if it has told that it is of our network."""
        if self._is_member(peer):
            try:
                self._newcomers_in.send_nowait(peer)
            except trio.WouldBlock:
                # Lookups will meet it again.
                log.debug("dht_newcomer_dropped", extra={"peer": str(peer)})

    def _is_member(self, peer: ID) -> bool:
        try:
            return self._registered.dht_protocol in self.host.get_peerstore().get_protocols(peer)
        except PeerStoreError:
            return False

    async def _admit_all(self) -> None:
        async for peer in self._newcomers:
            await self.records.add_peer(peer)

    def _linger(self, stream: LibP2pStream) -> bool:
        try:
            self._lingering_in.send_nowait(stream)
        except trio.WouldBlock:
            return False
        return True

    async def _linger_all(self) -> None:
        """Wait, for each stream that we finished, until the peer has finished too."""
        slots = trio.CapacityLimiter(limits.LINGERING_MAX)
        async with trio.open_nursery() as nursery:
            async for stream in self._lingering:
                await slots.acquire_on_behalf_of(stream)
                nursery.start_soon(_linger_one, stream, slots)


async def _linger_one(stream: LibP2pStream, slots: trio.CapacityLimiter) -> None:
    try:
        with trio.move_on_after(limits.LINGER_S) as patience:
            await stream.drain()
        if patience.cancelled_caught:
            await stream.reset()
    finally:
        slots.release_on_behalf_of(stream)
