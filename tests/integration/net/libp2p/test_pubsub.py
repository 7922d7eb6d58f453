"""Gossip that is meant to end the node, and a node that comes back quickly."""

import pytest
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from node.net import limits
from node.net.libp2p import LibP2pNetwork
from node.net.libp2p.host import DaemonSwarm
from protocol.units import PeerId
from tests.integration.net.libp2p.hosts import host_of, open_raw
from tests.net.world import NETWORK, LibP2pWorld, eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TOPIC = "/souk/test/topic"


class Listeners:
    """Two connected nodes; what the second heard."""

    def __init__(self, world: LibP2pWorld) -> None:
        self.heard: list[bytes] = []
        self.world = world
        self.one, self.two = world.make(), world.make()
        self.heard_by_one: list[bytes] = []
        self.one.subscribe(TOPIC, self.hear_as_one)
        self.two.subscribe(TOPIC, self.hear)

    def hear(self, peer_id: PeerId, data: bytes) -> bool:
        self.heard.append(data)
        return True

    def hear_as_one(self, peer_id: PeerId, data: bytes) -> bool:
        self.heard_by_one.append(data)
        return True

    async def start(self) -> None:
        await self.world.start(self.one, self.two)
        await self.one.dial(self.two.addresses[0])
        await self.world.mesh()

    async def check_alive(self) -> None:
        newcomer = self.world.make()
        newcomer.subscribe(TOPIC, lambda _peer, _data: True)
        await self.world.start(newcomer)
        await newcomer.dial(self.two.addresses[0])
        await self.world.mesh()
        await newcomer.publish(TOPIC, b"alive?")
        await eventually(lambda: b"alive?" in self.heard)


def _prefixed(message: bytes) -> bytes:
    assert len(message) < 1 << 14
    return bytes([len(message) & 0x7F | 0x80, len(message) >> 7]) + message


def _rsa_message_with_a_garbage_key() -> bytes:
    sender = ID.from_pubkey(create_rsa_key_pair(bits=2048).public_key)
    message = rpc_pb2.Message(
        from_id=sender.to_bytes(), data=b"x", seqno=b"\x01", topicIDs=[TOPIC], key=b"garbage", signature=b"s"
    )
    return rpc_pb2.RPC(publish=[message]).SerializeToString()


@pytest.mark.parametrize("kind", ["protobuf", "rsa"])
async def test_node_goes_on_when_a_pubsub_message_is_malformed(world: LibP2pWorld, kind: str) -> None:
    both = Listeners(world)
    await both.start()
    bad = b"\xff" * 200 if kind == "protobuf" else _rsa_message_with_a_garbage_key()
    stream = await open_raw(both.one, both.two.peer_id, "/meshsub/1.1.0")
    await stream.write(_prefixed(bad))
    await both.check_alive()


async def test_message_is_dropped_unread_when_it_is_too_large(world: LibP2pWorld) -> None:
    both = Listeners(world)
    await both.start()
    assert both.one._live is not None
    # Around the check in publish(), as a hostile peer would.
    await super(type(both.one._live.pubsub), both.one._live.pubsub).publish(TOPIC, bytes(limits.GOSSIP_BYTES_MAX))
    await eventually(lambda: len(both.heard) == 1)
    large = rpc_pb2.Message(data=bytes(limits.GOSSIP_BYTES_MAX + 1), topicIDs=[TOPIC], from_id=b"x", seqno=b"1")
    assert both.two._live is not None
    await both.two._live.pubsub.push_msg(ID(b"x"), large)
    assert len(both.heard) == 1


async def test_messages_are_heard_when_their_author_restarts_at_once(world: LibP2pWorld) -> None:
    both = Listeners(world)
    await both.start()
    # Stock numbers messages from the second of the start: the restarted node would repeat numbers.
    for number in range(20):
        await both.one.publish(TOPIC, b"%d" % number)
    await eventually(lambda: len(both.heard) == 20)
    await world.stop(both.one)
    again = LibP2pNetwork((1).to_bytes(32, "big"), listen=("/ip4/127.0.0.1/tcp/0",), network=NETWORK)
    assert again.peer_id == both.one.peer_id
    again.subscribe(TOPIC, lambda _peer, _data: True)
    await world.start(again)
    await again.dial(both.two.addresses[0])
    await world.mesh()
    await again.publish(TOPIC, b"after")
    await eventually(lambda: both.heard[20:] == [b"after"])


async def test_gossip_goes_on_when_one_of_two_connections_ends(world: LibP2pWorld) -> None:
    both = Listeners(world)
    await both.start()
    (old,) = host_of(both.two).get_network().get_connections()
    swarm = host_of(both.one).get_network()
    assert isinstance(swarm, DaemonSwarm)
    address = Multiaddr(both.two.addresses[0].partition("/p2p/")[0])
    await swarm.dial_addr(address, host_of(both.two).get_id())
    await eventually(lambda: len(host_of(both.two).get_network().get_connections()) == 2)
    await old.close()
    await world.mesh()
    await both.one.publish(TOPIC, b"forth")
    await eventually(lambda: b"forth" in both.heard)
    await both.two.publish(TOPIC, b"back")
    await eventually(lambda: b"back" in both.heard_by_one)


async def test_fifty_messages_in_a_burst_all_arrive(world: LibP2pWorld) -> None:
    both = Listeners(world)
    await both.start()
    for number in range(50):
        await both.one.publish(TOPIC, b"%d" % number)
    await eventually(lambda: len(both.heard) >= 30)
    # Stock drops more than ten a second of our own; its queue of 32 for each peer bounds a burst.
    assert len(set(both.heard)) == len(both.heard)
