"""``LibP2pNetwork``: the daemon's network on py-libp2p (spec 02); its parts live in the modules beside it."""

import ipaddress
import socket
from collections.abc import Callable

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from multiaddr import Multiaddr

from node.errors import TransportError
from node.metrics import Metrics
from node.net import limits
from node.net.interface import Contact, GossipHandler, PeerAddresses, RecordRules, Stream, StreamHandler
from node.net.libp2p import patches
from node.net.libp2p.dialer import AddressBook
from node.net.libp2p.live import Live, Registered
from node.net.libp2p.peers import from_libp2p_untrusted, to_libp2p
from node.net.libp2p.ping import ping
from protocol.identity import peer_id_to_text
from protocol.units import NetworkId, PeerId


class LibP2pNetwork:
    """Implements ``node.net.interface.Network``."""

    def __init__(
        self, seed: bytes, *, listen: tuple[str, ...], network: NetworkId, metrics: Metrics | None = None
    ) -> None:
        """``seed`` is the raw Ed25519 seed (32 bytes) of the node's key; ``listen`` holds multiaddrs.

        Without ``metrics`` nobody looks at what is counted.
        """
        self._metrics = Metrics() if metrics is None else metrics
        self._seed = seed
        self._listen = listen
        self._peer_id = PeerId(create_new_key_pair(seed).public_key.to_bytes())
        # The library calls its DHT the same everywhere, whatever prefix it is given, and networks would mix.
        dht_protocol = TProtocol(f"/souk/{network.hex()[:16]}/kad/1.0.0")
        self._registered = Registered(
            dht_protocol=dht_protocol, handlers={}, callbacks=[], topics={}, rules=[], refusals=[]
        )
        self._book = AddressBook()
        self._live: Live | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Wildcards stand for every address of this host but loopback, unless there is no other."""
        return () if self._live is None else tuple(str(address) for address in self._live.host.get_addrs())

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        assert self._live is None and protocol not in self._registered.handlers, protocol
        self._registered.handlers[protocol] = handler

    def on_connected(self, callback: Callable[[PeerId], None]) -> None:
        assert self._live is None
        self._registered.callbacks.append(callback)

    def refuse(self, is_refused: Callable[[PeerId], bool]) -> None:
        assert self._live is None
        self._registered.refusals.append(is_refused)

    def subscribe(self, topic: str, handler: GossipHandler) -> None:
        assert self._live is None and topic not in self._registered.topics, topic
        self._registered.topics[topic] = handler

    def keep_records(self, rules: RecordRules) -> None:
        assert self._live is None
        self._registered.rules.append(rules)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; then no socket, task or stream is left.

        Raises: TransportError: an address cannot be listened on (it names the address).
        """
        patches.apply()
        for address in self._listen:
            await _check_free(address)
        self._live = Live(self._seed, self._registered, self._book, metrics=self._metrics)
        try:
            await self._live.run(self._listen, task_status)
        finally:
            self._live = None

    async def dial(self, address: str) -> PeerId:
        return await self._running().dialer.dial(address)

    def remember(self, peer: PeerAddresses) -> None:
        self._book.remember(peer)

    async def open_stream(self, peer_id: PeerId, protocol: str) -> Stream:
        live = self._running()
        await live.dialer.connect(peer_id)
        try:
            inner = await live.host.new_stream(to_libp2p(peer_id), [TProtocol(protocol)])
        except (BaseLibp2pError, OSError) as exc:
            cause = exc.__cause__ or exc
            raise TransportError(
                f"peer {peer_id_to_text(peer_id)} opens no stream of {protocol}: {cause}"
            ) from exc
        return live.wrap(inner, protocol)

    def connected_peers(self) -> frozenset[PeerId]:
        if self._live is None:
            return frozenset()
        return frozenset(from_libp2p_untrusted(peer) for peer in self._live.host.get_connected_peers())

    async def disconnect(self, peer_id: PeerId) -> None:
        if self._live is not None:
            # A close that is cancelled half-way leaves the socket open for good.
            with trio.move_on_after(limits.CLOSE_S, shield=True):
                await self._live.host.disconnect(to_libp2p(peer_id))

    async def ping(self, peer_id: PeerId) -> float:
        live = self._running()
        await live.dialer.connect(peer_id)
        return await ping(live.host, peer_id)

    def contact(self, peer_id: PeerId) -> Contact:
        if self._live is None:
            return Contact(addresses=tuple(map(str, self._book.find(peer_id))))
        return self._live.contact(peer_id)

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > limits.GOSSIP_BYTES_MAX:
            raise TransportError(f"{len(data)} bytes cannot be gossiped, the limit is {limits.GOSSIP_BYTES_MAX}")
        live = self._running()
        await live.pubsub.publish(topic, data)
        live.gossip.sent(len(data))

    async def put_record(self, key: str, value: bytes) -> None:
        await self._running().records.put(key, value)

    async def get_record(self, key: str) -> bytes | None:
        return await self._running().records.get(key)

    async def provide(self, key: str) -> None:
        await self._running().records.provide(key)

    async def find_providers(self, key: str, limit: int) -> list[PeerAddresses]:
        return await self._running().records.find_providers(key, limit)

    def _running(self) -> Live:
        if self._live is None:
            raise TransportError("the network is not running: start run() first")
        return self._live


async def _check_free(address: str) -> None:
    """Bind an address once, without sharing it, because the library says nothing when it cannot listen."""
    try:
        (_, host), (name, port) = [(part.name, value) for part, value in Multiaddr(address).items()]
        family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
        if name != "tcp":
            raise ValueError(name)
    except Exception as exc:  # multiaddr raises a dozen unrelated classes on malformed text
        raise TransportError(f"cannot listen on {address}: expected /ip4|ip6/<address>/tcp/<port>") from exc
    probe = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await probe.bind((host, int(port)))
        # Binding alone succeeds beside a listener that allows sharing its address; listening does not.
        probe.listen(1)
    except OSError as exc:
        raise TransportError(f"cannot listen on {address}: {exc}; is another node running there?") from exc
    finally:
        probe.close()
