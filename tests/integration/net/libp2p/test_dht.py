"""Records of liars, and nodes that are not of our network."""

import pytest

from node.errors import TransportError
from node.net.interface import RecordRules
from node.net.libp2p import LibP2pNetwork
from protocol.units import NetworkId
from tests.net.world import NETWORK, LibP2pWorld

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def _keeper(seed: int, *, strict: bool, network: NetworkId = NETWORK) -> LibP2pNetwork:
    node = LibP2pNetwork(seed.to_bytes(32, "big"), listen=("/ip4/127.0.0.1/tcp/0",), network=network)
    judge = (lambda _key, value: value.startswith(b"ok")) if strict else (lambda _key, _value: True)
    node.keep_records(RecordRules(namespace="test", is_valid=judge, rank=len))
    return node


async def _connect_all(world: LibP2pWorld, *nodes: LibP2pNetwork) -> None:
    await world.start(*nodes)
    for node in nodes[1:]:
        await node.dial(nodes[0].addresses[0])
    await world.mesh()


async def test_invalid_record_is_neither_kept_nor_returned_when_a_liar_puts_it(world: LibP2pWorld) -> None:
    honest, liar, other = _keeper(1, strict=True), _keeper(2, strict=False), _keeper(3, strict=True)
    await _connect_all(world, honest, liar, other)
    with pytest.raises(TransportError, match="no node took"):
        await liar.put_record("/test/a", b"a lie, and a long one")
    assert await honest.get_record("/test/a") is None
    await honest.put_record("/test/a", b"ok")
    assert await other.get_record("/test/a") == b"ok"


async def test_reader_sees_the_new_value_when_it_has_read_the_old_one(world: LibP2pWorld) -> None:
    writer, reader, third = (_keeper(seed, strict=True) for seed in (1, 2, 3))
    await _connect_all(world, writer, reader, third)
    for value in (b"ok1", b"ok22", b"ok333"):
        await writer.put_record("/test/a", value)
        assert reader._live is not None
        # As if it were one of many readers, of whom only a few are asked to keep the record.
        reader._live.records.service.value_store.put(b"/test/a", b"ok")
        assert await reader.get_record("/test/a") == value


async def test_providers_that_were_found_are_not_remembered_as_ours(world: LibP2pWorld) -> None:
    provider, reader, third = (_keeper(seed, strict=True) for seed in (1, 2, 3))
    await _connect_all(world, provider, reader, third)
    await provider.provide("/model/x")
    assert len(await reader.find_providers("/model/x", 5)) == 1
    assert reader._live is not None and third._live is not None
    for node in (provider, third):
        node_live = node._live
        assert node_live is not None
        node_live.records.service.provider_store.providers.clear()
    reader._live.records.service.provider_store.providers.clear()
    assert await reader.find_providers("/model/x", 5) == []


async def test_node_of_another_network_is_no_member_of_our_dht(world: LibP2pWorld) -> None:
    ours, foreign = _keeper(1, strict=True), _keeper(2, strict=True, network=NetworkId(b"\x01" * 32))
    await _connect_all(world, ours, foreign)
    assert ours.connected_peers() == {foreign.peer_id}
    assert ours._live is not None
    assert ours._live.records.service.get_routing_table_size() == 0
    with pytest.raises(TransportError, match="no node took"):
        await ours.put_record("/test/a", b"ok")
    member = _keeper(3, strict=True)
    await world.start(member)
    await member.dial(ours.addresses[0])
    await world.mesh()
    assert ours._live.records.service.get_routing_table_size() == 1
    await ours.put_record("/test/a", b"ok")
