"""What a peer must not be able to do to the host; each cures a fault of py-libp2p 0.8.1."""

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from node.net import limits
from node.net.libp2p.host import DaemonSwarm, expand_wildcards
from node.net.libp2p.network import LibP2pNetwork
from node.net.libp2p.peers import to_libp2p
from protocol.units import PeerId
from tests.integration.net.libp2p.hosts import connect, host_of, make_bare_host, open_raw, port_of
from tests.net.world import ECHO, WAIT_S, LibP2pWorld, check_echo, eventually, make_pair, where

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def test_newcomer_gets_in_when_300_connections_have_come_and_gone(
    world: LibP2pWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 64)
    _one, two = await make_pair(world)

    async def come_and_go(client: LibP2pNetwork) -> None:
        for _ in range(30):
            await client.dial(two.addresses[0])
            await client.disconnect(two.peer_id)

    clients = [world.make() for _ in range(10)]
    await world.start(*clients)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(come_and_go, client)
    newcomer = world.make()
    await world.start(newcomer)
    newcomer.remember(where(two))
    await check_echo(newcomer, two.peer_id)


async def test_no_connection_is_forgotten_when_it_comes_while_another_is_closed(
    world: LibP2pWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await make_pair(world)
    swarm, peer = host_of(one).get_network(), to_libp2p(two.peer_id)
    assert isinstance(swarm, DaemonSwarm)
    (first,) = swarm.get_connections(peer)
    close = first.close

    async def close_beside_a_dial() -> None:
        monkeypatch.setattr(first, "close", close)
        await swarm.dial_addr(Multiaddr(two.addresses[0]).decapsulate(Multiaddr(f"/p2p/{peer}")), peer)
        await close()

    monkeypatch.setattr(first, "close", close_beside_a_dial)
    await one.disconnect(two.peer_id)
    (second,) = swarm.get_connections(peer)
    assert first.is_closed and second is not first
    await one.disconnect(two.peer_id)
    assert second.is_closed and not swarm.get_connections(peer)


async def test_honest_peer_gets_in_when_a_source_holds_idle_connections(
    world: LibP2pWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 2 * limits.HANDSHAKES_PER_SOURCE_MAX)
    _one, two = await make_pair(world)
    idle = [
        await trio.open_tcp_stream("127.0.0.1", port_of(two), local_address="127.0.0.2")
        for _ in range(3 * limits.HANDSHAKES_PER_SOURCE_MAX)
    ]
    three = world.make()
    await world.start(three)
    with trio.fail_after(limits.HANDSHAKE_S / 2):
        await three.dial(two.addresses[0])
    for stream in idle:
        await stream.aclose()


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x7f"]
)
async def test_node_goes_on_when_garbage_comes_over_tcp(world: LibP2pWorld, garbage: bytes) -> None:
    one, two = await make_pair(world)
    for _ in range(10):
        async with await trio.open_tcp_stream("127.0.0.1", port_of(two)) as stream:
            await stream.send_all(garbage)
    await check_echo(one, two.peer_id)


@pytest.mark.parametrize(
    "protocol", ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/kad/1.0.0", "/ipfs/ping/1.0.0"]
)
async def test_node_goes_on_when_garbage_comes_over_a_library_protocol(world: LibP2pWorld, protocol: str) -> None:
    one, two = await make_pair(world)
    async with await one.open_stream(two.peer_id, ECHO) as other:
        for garbage in (b"\xff" * 64, b"\x04\xff\xff\xff\xff", b""):
            stream = await open_raw(one, two.peer_id, protocol)
            await stream.write(garbage)
            await stream.close()
        await other.send_frame(b"unharmed")
        assert await other.receive_frame(100) == b"unharmed"
    await check_echo(one, two.peer_id)


async def test_peer_is_refused_when_it_speaks_plaintext_only(world: LibP2pWorld) -> None:
    two = world.make()
    await world.start(two)
    key_pair = create_new_key_pair(bytes(31) + b"p")
    host = make_bare_host(key_pair, {TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(key_pair)})
    async with host.run([]):
        with trio.fail_after(WAIT_S), pytest.raises(BaseLibp2pError):
            await connect(host, two.addresses[0])
        await host.close()
    assert not two.connected_peers()


async def test_peer_is_refused_when_its_key_is_not_ed25519(world: LibP2pWorld) -> None:
    two = world.make()
    heard: list[PeerId] = []
    two.on_connected(heard.append)
    await world.start(two)
    host = make_bare_host(create_secp256k1_key_pair())
    async with host.run([]):
        with trio.move_on_after(WAIT_S):
            await connect(host, two.addresses[0])
            await eventually(lambda: not host.get_connected_peers())
        await host.close()
    assert not heard and not two.connected_peers()


async def test_connection_is_refused_more_streams_when_a_peer_holds_the_limit(world: LibP2pWorld) -> None:
    one, two = await make_pair(world)
    # Streams on which nothing is ever negotiated count as well.
    swarm = host_of(one).get_network()
    held = [await swarm.new_stream(host_of(two).get_id()) for _ in range(limits.STREAMS_PER_PEER_MAX - 10)]
    await eventually(lambda: host_of(two)._inbound_streams.total() >= limits.STREAMS_PER_PEER_MAX - 10)
    more = [await swarm.new_stream(host_of(two).get_id()) for _ in range(10)]
    await eventually(lambda: host_of(two)._inbound_streams.total() <= limits.STREAMS_PER_PEER_MAX)
    for stream in held + more:
        await stream.reset()
    await eventually(lambda: host_of(two)._inbound_streams.total() < 10)
    await check_echo(one, two.peer_id)


async def test_node_stops_within_two_seconds_when_it_has_twenty_connections(world: LibP2pWorld) -> None:
    hub = world.make()
    await world.start(hub)
    for _ in range(20):
        node = world.make_stranger()
        await world.start(node)
        await node.dial(hub.addresses[0])
    with trio.fail_after(2):
        await world.stop(hub)


def test_wildcard_stands_for_interfaces_when_addresses_are_told() -> None:
    from multiaddr import Multiaddr

    told = [str(a) for a in expand_wildcards([Multiaddr("/ip4/0.0.0.0/tcp/7"), Multiaddr("/ip4/127.0.0.1/tcp/8")])]
    assert "/ip4/127.0.0.1/tcp/8" in told
    assert len(told) > 1
    assert not any("0.0.0.0" in address for address in told)
