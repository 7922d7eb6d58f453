"""A network without sockets, for tests and simulation: the same promises as libp2p, in virtual time.

``MemoryFabric`` is the world: who is up, how long packets take, which links are cut. Everything that travels is on
one heap (``node.net.memory_link``), so that a run is a function of its seed. Simplified: gossip floods along
connections, and the DHT is one map that every connected node can reach.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from node.errors import TransportError
from node.net import limits
from node.net.interface import Connection, Contact, GossipHandler, PeerAddresses, RecordRules, StreamHandler
from node.net.memory_link import IsCut, MemoryStream, Wire, address_of, connect_ends
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted, peer_id_to_text
from protocol.units import PeerId

log = logging.getLogger(__name__)

_CONNECTION_GONE: Final = "it does not know the connection"
_DHT_TRIPS: Final = 4
"""A lookup asks a few nodes one after the other: there and back, twice."""


class MemoryFabric:
    """The world of the nodes. ``run`` has to be running while any of them does."""

    def __init__(
        self,
        seed: int = 0,
        *,
        latency_s: tuple[float, float] = (0.001, 0.01),
        gossip_loss: float = 0.0,
        is_cut: IsCut = lambda _source, _target: False,
    ) -> None:
        """``is_cut(a, b)`` says whether packets from a to b vanish now; it may change its mind at any time."""
        self.wire = Wire(seed, latency_s=latency_s, is_cut=is_cut)
        self.gossip_loss = gossip_loss
        self.up: dict[str, MemoryNetwork] = {}
        self.records: dict[str, bytes] = {}
        self.providers: dict[str, dict[PeerId, PeerAddresses]] = {}
        self.messages = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.wire.run(task_status=task_status)

    def network(self, name: str, peer_id: PeerId) -> "MemoryNetwork":
        """Make a node's place; ``name`` is its host, and two nodes cannot have the same one at once."""
        return MemoryNetwork(self, name, peer_id)

    def find(self, peer_id: PeerId) -> "MemoryNetwork | None":
        return next((node for node in self.up.values() if node.peer_id == peer_id), None)

    def end_stale_link(self, node: "MemoryNetwork", peer: PeerId) -> None:
        """Let ``node`` lose its half of a connection that the peer, or who runs there now, knows nothing of."""
        other = self.find(peer)
        if other is None or not other.is_linked(node.peer_id):
            node.lose_link(peer)

    def crash(self, name: str) -> None:
        """Take a node off the network as a kill does: peers see resets, and nothing it does later gets out.

        Cancel its tasks afterwards: a crash that only cancels lets ``finally`` blocks act on the world.
        """
        node = self.up.pop(name, None)
        if node is not None:
            node.go_down()


class MemoryNetwork:
    """Implements ``node.net.interface.Network``."""

    def __init__(self, fabric: MemoryFabric, name: str, peer_id: PeerId) -> None:
        self._fabric = fabric
        self._wire = fabric.wire
        self._name = name
        self._peer_id = peer_id
        self._handlers: dict[str, StreamHandler] = {}
        self._refusals: list[Callable[[PeerId], bool]] = []
        self._callbacks: list[Callable[[PeerId], None]] = []
        self._topics: dict[str, GossipHandler] = {}
        self._rules: dict[str, RecordRules] = {}
        self._book: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()
        # Dicts as ordered sets: the order of a set of bytes changes from process to process.
        self._links: dict[PeerId, bool] = {}
        """With whom there is a connection, and whether the other end dialled."""
        self._streams: dict[MemoryStream, None] = {}
        self._open: Counter[tuple[PeerId, str]] = Counter()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._inbound_in, self._inbound = trio.open_memory_channel[tuple[str, MemoryStream]](
            limits.STREAMS_PER_PEER_MAX
        )

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return (address_of(self._name, self._peer_id),) if self._is_up() else ()

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        assert not self._is_up() and protocol not in self._handlers, protocol
        self._handlers[protocol] = handler

    def on_connected(self, callback: Callable[[PeerId], None]) -> None:
        assert not self._is_up()
        self._callbacks.append(callback)

    def refuse(self, is_refused: Callable[[PeerId], bool]) -> None:
        assert not self._is_up()
        self._refusals.append(is_refused)

    def refuses(self, peer_id: PeerId) -> bool:
        return any(is_refused(peer_id) for is_refused in self._refusals)

    def subscribe(self, topic: str, handler: GossipHandler) -> None:
        assert not self._is_up() and topic not in self._topics, topic
        self._topics[topic] = handler

    def keep_records(self, rules: RecordRules) -> None:
        assert not self._is_up()
        self._rules[rules.namespace] = rules

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises: TransportError: another node has this name."""
        if self._name in self._fabric.up:
            raise TransportError(f"cannot listen on /memory/{self._name}: another node is running there")
        self._fabric.up[self._name] = self
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for protocol, stream in self._inbound:
                    nursery.start_soon(self._run_handler, protocol, stream)
        finally:
            if self._is_up():
                del self._fabric.up[self._name]
            self.go_down()

    def go_down(self) -> None:
        """Lose every stream and connection; peers hear of it, as far as links let them."""
        for stream in list(self._streams):
            stream.abandon()
        for peer in list(self._links):
            self._hang_up(peer)

    # -- Connections ---------------------------------------------------------------------------------------------

    async def dial(self, address: str) -> PeerId:
        self._check_up()
        name, peer_id = _parse(address)
        if peer_id == self._peer_id:
            raise TransportError(f"{address} is this node itself")
        self._check_refused(peer_id)
        if peer_id not in self._links:
            answer = _Answer()
            self._wire.post(self._peer_id, peer_id, partial(self._arrive_dial, name, peer_id, answer))
            with trio.move_on_after(limits.DIAL_S):
                await answer.event.wait()
            if answer.refusal is not None:
                raise TransportError(f"{address} cannot be reached: {answer.refusal}")
        await trio.lowlevel.checkpoint()
        self.remember(PeerAddresses(peer_id=peer_id, addresses=(address,)))
        return peer_id

    def _arrive_dial(self, name: str, expected: PeerId, answer: "_Answer") -> None:
        node = self._fabric.up.get(name)
        if node is None:
            reply = partial(answer.give, "nobody listens there")
        elif node.peer_id != expected:
            reply = partial(answer.give, f"peer {peer_id_to_text(node.peer_id)} answered")
        elif node.refuses(self._peer_id):
            reply = partial(answer.give, "the peer hung up")
        else:
            reply = partial(self._finish_dial, node, answer)
        self._wire.post(expected, self._peer_id, reply)

    def _finish_dial(self, node: "MemoryNetwork", answer: "_Answer") -> None:
        # Both ends at once: on a real connection nothing that the other end sends overtakes the handshake.
        if self.refuses(node.peer_id) or node.refuses(self._peer_id):
            answer.give("the peer hung up")
        elif self._is_up() and node._is_up():
            node._link_up(self._peer_id, self._name, is_inbound=True)
            self._link_up(node.peer_id, node._name, is_inbound=False)
            answer.give(None)

    def _link_up(self, peer: PeerId, name: str, *, is_inbound: bool) -> None:
        if peer in self._links:
            return
        self._links[peer] = is_inbound
        self.remember(PeerAddresses(peer_id=peer, addresses=(address_of(name, peer),)))
        for callback in self._callbacks:
            callback(peer)

    def remember(self, peer: PeerAddresses) -> None:
        self._book[peer.peer_id] = peer.addresses[: limits.ADDRESSES_PER_PEER_MAX]
        self._book.move_to_end(peer.peer_id)
        while len(self._book) > limits.KNOWN_PEERS_MAX:
            self._book.popitem(last=False)

    def is_linked(self, peer: PeerId) -> bool:
        return peer in self._links

    def lose_link(self, peer: PeerId) -> None:
        self._links.pop(peer, None)

    def connected_peers(self) -> frozenset[PeerId]:
        return frozenset(self._links)

    async def disconnect(self, peer_id: PeerId) -> None:
        for stream in list(self._streams):
            if stream.peer_id == peer_id:
                stream.abandon()
        if peer_id in self._links:
            self._hang_up(peer_id)
        await trio.lowlevel.checkpoint()

    def _hang_up(self, peer: PeerId) -> None:
        del self._links[peer]
        other = self._fabric.find(peer)
        if other is not None:
            self._wire.post(self._peer_id, peer, lambda: other.lose_link(self._peer_id))
            # Behind a cut it hears nothing, but its pings stay unanswered.
            noticed_at = trio.current_time() + limits.PING_PERIOD_S + limits.PING_WAIT_S
            self._wire.at(noticed_at, lambda: self._fabric.end_stale_link(other, self._peer_id))

    # -- Streams -------------------------------------------------------------------------------------------------

    async def open_stream(self, peer_id: PeerId, protocol: str) -> MemoryStream:
        self._check_up()
        await self._reach(peer_id)
        answer = _Answer()
        near = self._make_stream(peer_id)
        try:
            self._wire.post(self._peer_id, peer_id, partial(self._arrive_open, near, protocol, answer))
            with trio.move_on_after(limits.OPEN_S):
                await answer.event.wait()
        except trio.Cancelled:
            near.abandon()
            raise
        if answer.refusal is not None:
            near.abandon()
            raise TransportError(
                f"peer {peer_id_to_text(peer_id)} opens no stream of {protocol}: {answer.refusal}"
            )
        return near

    async def _reach(self, peer_id: PeerId) -> None:
        self._check_refused(peer_id)
        failures = []
        for address in () if peer_id in self._links else self._book.get(peer_id, ()):
            try:
                await self.dial(address)
                break
            except TransportError as exc:
                failures.append(str(exc))
        if peer_id not in self._links:
            tried = f"tried {'; '.join(failures)}" if failures else "no address is known"
            raise TransportError(f"peer {peer_id_to_text(peer_id)} cannot be reached; {tried}")

    def _make_stream(self, peer_id: PeerId) -> MemoryStream:
        stream = self.new_stream(peer_id, lambda gone: self._streams.pop(gone, None))
        self._streams[stream] = None
        return stream

    def new_stream(self, peer_id: PeerId, on_gone: Callable[[MemoryStream], None]) -> MemoryStream:
        """Make one end; a simulation that wants to see every frame overrides this."""
        return MemoryStream(self._wire, own=self._peer_id, peer_id=peer_id, on_gone=on_gone)

    @property
    def streams_open(self) -> int:
        """Ends on which something may still arrive or leave."""
        return len(self._streams)

    def _arrive_open(self, near: MemoryStream, protocol: str, answer: "_Answer") -> None:
        if near.is_lost:
            return
        node = self._fabric.find(near.peer_id)
        refusal = "it is gone" if node is None else node._accept(self._peer_id, protocol, near)
        self._wire.post(near.peer_id, self._peer_id, partial(self._arrive_answer, near.peer_id, refusal, answer))

    def _arrive_answer(self, peer: PeerId, refusal: str | None, answer: "_Answer") -> None:
        if refusal == _CONNECTION_GONE:
            # It restarted while the link was cut: as a reset on the wire does, this ends our half of it.
            self._links.pop(peer, None)
        answer.give(refusal)

    def _accept(self, peer: PeerId, protocol: str, near: MemoryStream) -> str | None:
        """Take a stream that ``peer`` opens, or say why not."""
        if protocol not in self._handlers:
            return "the protocol is not supported"
        if peer not in self._links:
            return _CONNECTION_GONE
        if self._open[peer, protocol] >= limits.STREAMS_PER_PROTOCOL_MAX:
            return "it takes no more streams"
        far = self._make_stream(peer)
        connect_ends(near, far)
        try:
            self._inbound_in.send_nowait((protocol, far))
        except trio.WouldBlock:
            far.abandon()
            return "it takes no more streams"
        self._open[peer, protocol] += 1
        return None

    async def _run_handler(self, protocol: str, stream: MemoryStream) -> None:
        try:
            async with stream:
                await self._handlers[protocol](stream)
        except Exception as exc:  # the edge of one conversation: the others go on
            event = {"peer": peer_id_to_text(stream.peer_id), "protocol": protocol, "cause": repr(exc)}
            log.info("stream_handler_failed", extra=event)
        finally:
            self._open[stream.peer_id, protocol] -= 1

    async def ping(self, peer_id: PeerId) -> float:
        self._check_up()
        await self._reach(peer_id)
        began, answer = trio.current_time(), _Answer()

        def arrive() -> None:
            node = self._fabric.find(peer_id)
            if node is not None and node.is_linked(self._peer_id):
                self._wire.post(peer_id, self._peer_id, partial(answer.give, None))

        self._wire.post(self._peer_id, peer_id, arrive)
        await answer.event.wait()
        return trio.current_time() - began

    def contact(self, peer_id: PeerId) -> Contact:
        addresses = self._book.get(peer_id, ())
        if peer_id not in self._links:
            return Contact(addresses=addresses)
        # Whoever is connected stands in the book, unless thousands of others came after it.
        linked = Connection(address=next(iter(addresses), "/memory"), is_inbound=self._links[peer_id], rtt_s=None)
        return Contact(addresses=addresses, connections=(linked,))

    # -- Gossip --------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, data: bytes) -> None:
        self._check_up()
        if len(data) > limits.GOSSIP_BYTES_MAX:
            raise TransportError(f"{len(data)} bytes cannot be gossiped, the limit is {limits.GOSSIP_BYTES_MAX}")
        self._fabric.messages += 1
        self._remember_message(self._fabric.messages)
        self._spread(topic, data, self._fabric.messages, source=self._peer_id)
        await trio.lowlevel.checkpoint()

    def _spread(self, topic: str, data: bytes, number: int, *, source: PeerId) -> None:
        rng = self._wire.rng(self._peer_id)
        peers = [peer for peer in self._links if peer != source]
        for peer in rng.sample(peers, min(len(peers), limits.GOSSIP_DEGREE)):
            if rng.random() >= self._fabric.gossip_loss:
                self._wire.post(self._peer_id, peer, partial(self._arrive_gossip, peer, topic, data, number))

    def _arrive_gossip(self, peer: PeerId, topic: str, data: bytes, number: int) -> None:
        node = self._fabric.find(peer)
        if node is not None:
            node._hear(self._peer_id, topic, data, number)

    def _hear(self, forwarder: PeerId, topic: str, data: bytes, number: int) -> None:
        if topic not in self._topics or number in self._seen:
            return
        self._remember_message(number)
        try:
            passes = self._topics[topic](forwarder, data)
        except Exception as exc:  # the edge of one message: a peer must not end the node
            log.warning("gossip_message_failed", extra={"peer": peer_id_to_text(forwarder), "cause": repr(exc)})
            return
        if passes:
            self._spread(topic, data, number, source=forwarder)

    def _remember_message(self, number: int) -> None:
        self._seen[number] = None
        while len(self._seen) > limits.GOSSIP_SEEN_MAX:
            self._seen.popitem(last=False)

    # -- Records and providers -----------------------------------------------------------------------------------

    async def put_record(self, key: str, value: bytes) -> None:
        await self._ask_dht()
        if not self._is_valid(key, value):
            raise TransportError(f"the record {key!r} is not stored: the rules of its namespace refuse the value")
        self._check_dht(f"no node took the record {key!r}")
        known = self._fabric.records.get(key)
        rank = self._rules[_namespace(key)].rank
        if known is None or not self._is_valid(key, known) or rank(value) >= rank(known):
            self._fabric.records[key] = value

    async def get_record(self, key: str) -> bytes | None:
        await self._ask_dht()
        value = self._fabric.records.get(key)
        return value if value is not None and self._has_dht() and self._is_valid(key, value) else None

    async def provide(self, key: str) -> None:
        await self._ask_dht()
        self._check_dht(f"no node was told that we provide {key!r}")
        mine = PeerAddresses(peer_id=self._peer_id, addresses=self.addresses)
        self._fabric.providers.setdefault(key, {})[self._peer_id] = mine

    async def find_providers(self, key: str, limit: int) -> list[PeerAddresses]:
        await self._ask_dht()
        known = self._fabric.providers.get(key, {}) if self._has_dht() else {}
        return [provider for peer, provider in known.items() if peer != self._peer_id][:limit]

    async def _ask_dht(self) -> None:
        self._check_up()
        for _ in range(_DHT_TRIPS):
            await trio.sleep_until(self._wire.arrival(self._peer_id))

    def _has_dht(self) -> bool:
        return any(not self._wire.is_cut(self._peer_id, peer) for peer in self._links)

    def _check_dht(self, message: str) -> None:
        if not self._has_dht():
            raise TransportError(f"{message}: no peer is connected")

    def _is_valid(self, key: str, value: bytes) -> bool:
        rules = self._rules.get(_namespace(key))
        return rules is not None and len(value) <= limits.RECORD_BYTES_MAX and rules.is_valid(key, value)

    def _check_refused(self, peer_id: PeerId) -> None:
        if self.refuses(peer_id):
            raise TransportError(f"peer {peer_id_to_text(peer_id)} is refused by this node")

    def _is_up(self) -> bool:
        return self._fabric.up.get(self._name) is self

    def _check_up(self) -> None:
        if not self._is_up():
            raise TransportError("the network is not running: start run() first")


class _Answer:
    """What came back for a request; silence is a refusal."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.refusal: str | None = "no answer"

    def give(self, refusal: str | None) -> None:
        self.refusal = refusal
        self.event.set()


def _namespace(key: str) -> str:
    return key.split("/")[1] if key.startswith("/") and key.count("/") > 1 else ""


def _parse(address: str) -> tuple[str, PeerId]:
    parts = address.split("/")
    if len(parts) != 5 or parts[1] != "memory" or parts[3] != "p2p":
        raise TransportError(f"expected /memory/<name>/p2p/<peer id>, got {address!r}")
    try:
        return parts[2], peer_id_from_text_untrusted(parts[4])
    except RemoteProtocolError as exc:
        raise TransportError(f"{address}: {exc}") from exc
