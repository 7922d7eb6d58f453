"""Records and providers in py-libp2p's Kademlia DHT, without its stale answers."""

from collections.abc import Callable
from contextvars import ContextVar

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.common import QUERY_TIMEOUT
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.utils import InvalidRecordType
from libp2p.records.validator import NamespacedValidator, Validator

from node.errors import TransportError
from node.net import limits
from node.net.interface import PeerAddresses, RecordRules
from node.net.libp2p.peers import from_libp2p_untrusted
from protocol.errors import RemoteProtocolError

_asking: ContextVar[bool] = ContextVar("_asking", default=False)
"""True in the task that asks the network: then the local stores neither answer nor remember."""


class _HonestValueStore(ValueStore):
    """Stock answers ``get_value`` from the local copy, and stores one for 24 h at every get: stale offers."""

    def get(self, key: bytes) -> Record | None:
        return None if _asking.get() else super().get(key)

    def put_record(self, key: bytes, record: Record) -> None:
        if not _asking.get():
            super().put_record(key, record)


class _HonestProviderStore(ProviderStore):
    """The same for providers: a dead one would be answered, and passed on, for 48 h."""

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        return [] if _asking.get() else super().get_providers(key)

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        # Stock bounds the providers of a key (20), not the number of keys.
        known_or_room = key in self.providers or len(self.providers) < limits.RECORDS_MAX
        if known_or_room and not _asking.get():
            super().add_provider(key, provider)


class _Rules(Validator):
    """One namespace's rules, as the library wants them."""

    def __init__(self, rules: RecordRules) -> None:
        self._rules = rules

    def validate(self, key: str, value: bytes) -> None:
        if len(value) > limits.RECORD_BYTES_MAX or not self._rules.is_valid(key, value):
            raise InvalidRecordType(f"the rules of /{self._rules.namespace}/ refuse the value of {key!r}")

    def select(self, key: str, values: list[bytes]) -> int:
        ranks = [self._rules.rank(value) if self._rules.is_valid(key, value) else None for value in values]
        return max(range(len(values)), key=lambda i: (ranks[i] is not None, ranks[i] or 0))


class _MemberTable(RoutingTable):
    """Stock takes in whoever answers, also nodes of another network."""

    def __init__(self, host: BasicHost, is_member: Callable[[ID], bool]) -> None:
        super().__init__(host.get_id(), host)
        self._is_member = is_member

    async def add_peer(self, peer_obj: PeerInfo | ID, *, skip_server_mode_check: bool = False) -> bool:
        peer = peer_obj.peer_id if isinstance(peer_obj, PeerInfo) else peer_obj
        # The library's own check looks for the protocol under its stock name.
        return self._is_member(peer) and await super().add_peer(peer_obj, skip_server_mode_check=True)


class RecordTable:
    """Puts and gets for one host; ``service`` has to be run."""

    def __init__(self, host: BasicHost, rules: list[RecordRules], *, is_member: Callable[[ID], bool]) -> None:
        validator = NamespacedValidator(
            {rule.namespace: _Rules(rule) for rule in rules},
            # Without it, keys of unknown namespaces are kept and served unchecked.
            strict_validation=True,
        )
        self.service = KadDHT(
            host, DHTMode.SERVER, validator=validator, validator_changed=True, strict_validation=True
        )
        self.service.routing_table = _MemberTable(host, is_member)
        self.service.peer_routing = PeerRouting(host, self.service.routing_table)
        self.service.value_store = _HonestValueStore(host, host.get_id())
        self.service.provider_store = _HonestProviderStore(host, self.service.peer_routing)
        self._validator = validator
        self._own = host.get_id()

    async def add_peer(self, peer: ID) -> None:
        """Take a connected peer into the routing table, and look around while the table is small.

        The library learns no peers by itself and refreshes every 600 s only: after a mass join, tables stayed at
        one entry. Looking at sizes 1, 2, 4 … costs a joining node a handful of lookups.
        """
        before = self.service.get_routing_table_size()
        await self.service.add_peer(peer)
        size = self.service.get_routing_table_size()
        if size > before and size & (size - 1) == 0 and size <= 64:
            await self.service.refresh_routing_table()

    async def put(self, key: str, value: bytes) -> None:
        """Store a record at the nodes nearest to its key; ``put_value`` would not say whether any took it.

        Raises: TransportError: our own rules refuse it, or no node took it.
        """
        try:
            self._validator.validate(key, value)
        except InvalidRecordType as exc:
            raise TransportError(f"the record {key!r} is not stored: {exc}") from exc
        raw = key.encode()
        self.service.value_store.put(raw, value)
        taken = 0

        async def store_at(peer: ID) -> None:
            nonlocal taken
            with trio.move_on_after(QUERY_TIMEOUT):
                taken += await self.service.value_store._store_at_peer(peer, raw, value)

        nearest = await self.service.peer_routing.find_closest_peers_network(raw)
        async with trio.open_nursery() as nursery:
            for peer in nearest:
                if peer != self._own:
                    nursery.start_soon(store_at, peer)
        if not taken:
            raise TransportError(f"no node took the record {key!r}; {len(nearest)} were asked")

    async def get(self, key: str) -> bytes | None:
        """Ask the network, not ourselves."""
        token = _asking.set(True)
        try:
            return await self.service.get_value(key)
        finally:
            _asking.reset(token)

    async def provide(self, key: str) -> None:
        """Raises: TransportError: no node was told."""
        if not await self.service.provider_store.provide(key.encode()):
            raise TransportError(f"no node was told that we provide {key!r}")

    async def find_providers(self, key: str, limit: int) -> list[PeerAddresses]:
        """Return other peers that provide ``key``, each once."""
        token = _asking.set(True)
        try:
            # One more than asked for: we may be among them. The answer repeats peers.
            found = await self.service.provider_store.find_providers(key.encode(), 4 * (limit + 1))
        finally:
            _asking.reset(token)
        providers: dict[ID, PeerAddresses] = {}
        for info in found:
            if info.peer_id == self._own or info.peer_id in providers:
                continue
            try:
                peer_id = from_libp2p_untrusted(info.peer_id)
            except RemoteProtocolError:
                continue
            providers[info.peer_id] = PeerAddresses(
                peer_id=peer_id,
                addresses=tuple(f"{where}" for where in info.addrs)[: limits.ADDRESSES_PER_PEER_MAX],
            )
        return list(providers.values())[:limit]
