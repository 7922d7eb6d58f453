"""Why each replaced name of the library is replaced, and dials as they should be."""

import logging

import pytest
import trio
from libp2p.kad_dht import value_store
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer import muxer_multistream
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp import tcp
from multiaddr import Multiaddr

from node.errors import TransportError
from node.net import limits
from node.net.interface import PeerAddresses
from node.net.libp2p import LibP2pNetwork, patches
from node.net.libp2p.host import DaemonSwarm
from node.net.libp2p.stream import LibP2pStream
from node.net.libp2p.yamux import SafeStream, SafeYamux
from tests.integration.net.libp2p.hosts import host_of
from tests.net.world import ECHO, NETWORK, LibP2pWorld, check_echo, echo, make_pair, where

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def test_connections_are_ours_when_the_library_builds_them(world: LibP2pWorld) -> None:
    one, two = await make_pair(world)
    for network in (one, two):
        for connection in host_of(network).get_network().get_connections():
            assert isinstance(connection.muxed_conn, SafeYamux)
    stream = await one.open_stream(two.peer_id, ECHO)
    assert isinstance(stream, LibP2pStream)
    assert isinstance(stream._inner.muxed_stream, SafeStream)
    assert vars(muxer_multistream)["Yamux"] is SafeYamux
    await stream.reset()


async def test_dial_of_the_library_takes_no_quarter_second(world: LibP2pWorld) -> None:
    one, two = world.make(), world.make()
    await world.start(one, two)
    start = trio.current_time()
    # Lookups of the DHT dial so.
    await host_of(one).connect(info_from_p2p_addr(Multiaddr(two.addresses[0])))
    assert trio.current_time() - start < 0.25


async def test_library_listens_nowhere_twice() -> None:
    patches.apply()
    (first,) = await tcp._open_reuseport_listeners("127.0.0.1", 0)
    port = first.socket.getsockname()[1]
    with pytest.raises(OpenConnectionError):
        await tcp._open_reuseport_listeners("127.0.0.1", port)
    await first.aclose()


async def test_peer_is_reached_at_once_when_a_dial_failed_before_it_came_up(world: LibP2pWorld) -> None:
    one, first = world.make(), world.make()
    await world.start(one, first)
    address = first.addresses[0]
    await world.stop(first)
    one.remember(PeerAddresses(peer_id=first.peer_id, addresses=(address,)))
    with pytest.raises(TransportError, match=address.split("/p2p/")[0]):
        await one.open_stream(first.peer_id, ECHO)
    swarm = host_of(one).get_network()
    assert isinstance(swarm, DaemonSwarm)
    swarm._negative_peer_cache.mark_failed(address.rpartition("/")[2])
    again = LibP2pNetwork((2).to_bytes(32, "big"), listen=(address.split("/p2p/")[0],), network=NETWORK)
    again.serve(ECHO, echo)
    await world.start(again)
    await check_echo(one, again.peer_id)
    # The library's own dials, of lookups for example, are free again as well.
    assert not swarm._negative_peer_cache.is_blocked(address.rpartition("/")[2])


async def test_peer_is_reached_when_only_its_last_address_works(world: LibP2pWorld) -> None:
    one, two = world.make(), world.make()
    two.serve(ECHO, echo)
    await world.start(one, two)
    dead = world.dead_address(two.peer_id)
    nonsense = "/ip4/127.0.0.1/udp/1/quic-v1"
    one.remember(PeerAddresses(peer_id=two.peer_id, addresses=(nonsense, dead, *where(two).addresses)))
    await check_echo(one, two.peer_id)


def test_library_logs_errors_through_our_handlers_and_little_else() -> None:
    patches.apply()
    library = logging.getLogger("libp2p")
    assert library.propagate and library.level == logging.ERROR
    assert not logging.getLogger("libp2p.network.auto_connector").isEnabledFor(logging.WARNING)
    assert vars(value_store)["MAX_VALUE_STORE_SIZE"] == limits.RECORDS_MAX
