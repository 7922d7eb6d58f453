"""What every implementation of ``Network`` promises about gossip, records and providers; see ``conformance``."""

import pytest

from node.errors import TransportError
from node.net import limits
from node.net.interface import Network, RecordRules
from protocol.units import PeerId
from tests.net.world import World, eventually, where

TOPIC = "/souk/test/topic"


async def test_gossip_reaches_a_third_node_when_handlers_pass_it_on(world: World) -> None:
    nodes, heard = await _line_of_gossips(world, passes=True)
    await nodes[0].publish(TOPIC, b"news")
    await eventually(lambda: (2, nodes[1].peer_id, b"news") in heard)
    assert heard == [(1, nodes[0].peer_id, b"news"), (2, nodes[1].peer_id, b"news")]


async def test_gossip_stops_when_a_handler_refuses_it(world: World) -> None:
    nodes, heard = await _line_of_gossips(world, passes=False)
    await nodes[0].publish(TOPIC, b"spam")
    await eventually(lambda: len(heard) == 1)
    await world.mesh()
    assert heard == [(1, nodes[0].peer_id, b"spam")]


async def _line_of_gossips(world: World, *, passes: bool) -> tuple[list[Network], list[tuple[int, PeerId, bytes]]]:
    heard: list[tuple[int, PeerId, bytes]] = []
    # Members of one DHT would introduce the ends of the line to each other.
    nodes = [world.make_stranger() for _ in range(3)]

    for number, node in enumerate(nodes):

        def hear(peer_id: PeerId, data: bytes, number: int = number) -> bool:
            heard.append((number, peer_id, data))
            return passes

        node.subscribe(TOPIC, hear)
    await world.start(*nodes)
    await nodes[0].dial(nodes[1].addresses[0])
    await nodes[1].dial(nodes[2].addresses[0])
    await world.mesh()
    return nodes, heard


async def test_node_goes_on_when_a_gossip_handler_raises(world: World) -> None:
    one, two = world.make(), world.make()
    heard: list[bytes] = []

    def hear(peer_id: PeerId, data: bytes) -> bool:
        heard.append(data)
        raise ValueError("a bug")

    one.subscribe(TOPIC, lambda _peer, _data: True)
    two.subscribe(TOPIC, hear)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    await world.mesh()
    for data in (b"first", b"second"):
        await one.publish(TOPIC, data)
        await eventually(lambda data=data: data in heard)  # type: ignore[misc]  # bound now on purpose
    with pytest.raises(TransportError, match="limit"):
        await one.publish(TOPIC, bytes(limits.GOSSIP_BYTES_MAX + 1))


async def _record_keepers(world: World, count: int) -> list[Network]:
    nodes = [world.make() for _ in range(count)]
    for node in nodes:
        node.keep_records(
            RecordRules(
                namespace="test", is_valid=lambda key, value: value.startswith(key[-1:].encode()), rank=len
            )
        )
    await world.start(*nodes)
    for node in nodes[1:]:
        await node.dial(nodes[0].addresses[0])
    await world.mesh()
    return nodes


async def test_records_are_found_and_the_highest_rank_wins_when_several_are_put(world: World) -> None:
    one, two, three = await _record_keepers(world, 3)
    assert await two.get_record("/test/a") is None
    await one.put_record("/test/a", b"a1")
    assert await two.get_record("/test/a") == b"a1"
    assert await three.get_record("/test/a") == b"a1"
    await three.put_record("/test/a", b"a23")
    assert await two.get_record("/test/a") == b"a23"
    assert await one.get_record("/test/a") == b"a23"


async def test_record_is_refused_when_its_namespace_forbids_it(world: World) -> None:
    one, two = await _record_keepers(world, 2)
    for key, value in (("/test/a", b"b"), ("/other/a", b"a"), ("bare", b"e"), ("/test/a", b"a" * 9000)):
        with pytest.raises(TransportError):
            await one.put_record(key, value)
        assert await two.get_record(key) is None


async def test_put_and_provide_fail_when_no_peer_is_there(world: World) -> None:
    (one,) = await _record_keepers(world, 1)
    with pytest.raises(TransportError):
        await one.put_record("/test/a", b"a")
    with pytest.raises(TransportError):
        await one.provide("/model/x")
    assert await one.get_record("/test/a") is None


async def test_providers_are_found_with_their_addresses_when_they_have_said_so(world: World) -> None:
    one, two, three = await _record_keepers(world, 3)
    await one.provide("/model/x")
    await two.provide("/model/x")
    assert {provider.peer_id for provider in await three.find_providers("/model/x", 5)} == {
        one.peer_id,
        two.peer_id,
    }
    assert await one.find_providers("/model/x", 5) == [where(two)]
    assert len(await three.find_providers("/model/x", 1)) == 1
    assert await three.find_providers("/model/y", 5) == []
