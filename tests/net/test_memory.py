"""The in-memory network: the conformance suite in virtual time, and what only a simulation can do."""

import hashlib

import pytest
import trio
from trio.testing import MockClock

from node.errors import StreamLostError, TransportError
from node.net import limits
from node.net.interface import Stream
from node.net.memory import MemoryFabric
from protocol.units import PeerId
from tests.net.conformance import *  # noqa: F403 (its tests are collected here)
from tests.net.conformance_records import *  # noqa: F403
from tests.net.world import ECHO, MemoryWorld, check_echo, echo, make_pair, where


@pytest.fixture
async def world(nursery: trio.Nursery) -> MemoryWorld:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    return MemoryWorld(nursery, fabric)


@pytest.fixture
def cuts() -> set[tuple[bytes, bytes]]:
    return set()


@pytest.fixture
async def cut_world(nursery: trio.Nursery, cuts: set[tuple[bytes, bytes]]) -> MemoryWorld:
    fabric = MemoryFabric(seed=1, is_cut=lambda a, b: (a, b) in cuts)
    await nursery.start(fabric.run)
    return MemoryWorld(nursery, fabric)


async def test_stream_falls_silent_when_its_link_is_cut(
    cut_world: MemoryWorld, cuts: set[tuple[bytes, bytes]]
) -> None:
    one, two = await make_pair(cut_world)
    async with await one.open_stream(two.peer_id, ECHO) as stream:
        cuts.add((two.peer_id, one.peer_id))
        await stream.send_frame(b"anybody?")
        with trio.move_on_after(3600) as hour:
            await stream.receive_frame(100)
        assert hour.cancelled_caught
        cuts.clear()
        with trio.move_on_after(3600) as hour:
            await stream.receive_frame(100)
        assert hour.cancelled_caught, "a stream with a gap must not go on"
    await check_echo(one, two.peer_id)


async def test_dial_and_open_give_up_when_the_link_is_cut(
    cut_world: MemoryWorld, cuts: set[tuple[bytes, bytes]]
) -> None:
    one, two = await make_pair(cut_world)
    three = cut_world.make()
    await cut_world.start(three)
    cuts |= {(one.peer_id, three.peer_id), (one.peer_id, two.peer_id)}
    start = trio.current_time()
    with pytest.raises(TransportError, match="no answer"):
        await one.dial(three.addresses[0])
    assert trio.current_time() - start == pytest.approx(limits.DIAL_S)
    with pytest.raises(TransportError, match="no answer"):
        await one.open_stream(two.peer_id, ECHO)


async def test_peers_see_resets_and_nothing_gets_out_when_a_node_crashes(world: MemoryWorld) -> None:
    one, two = await make_pair(world)
    async with await one.open_stream(two.peer_id, ECHO) as stream:
        world.fabric.crash("host2")
        with pytest.raises(StreamLostError):
            await stream.receive_frame(10)
        with pytest.raises(TransportError):
            await two.open_stream(one.peer_id, ECHO)
    await trio.sleep(1)
    assert not one.connected_peers()
    with pytest.raises(TransportError):
        await one.open_stream(two.peer_id, ECHO)


async def test_stream_is_reset_when_the_peer_never_finishes(world: MemoryWorld) -> None:
    one, two = world.make(), world.make()

    async def answer(stream: Stream) -> None:
        await stream.finish()

    two.serve("/answer", answer)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    async with await one.open_stream(two.peer_id, "/answer") as stream:
        assert await stream.receive_frame(0) is None
        await trio.sleep(limits.LINGER_S + 1)
        with pytest.raises(StreamLostError):
            await stream.send_frame(b"too late")


def test_runs_are_equal_when_their_seed_is() -> None:
    assert _trace(seed=5) == _trace(seed=5)
    assert _trace(seed=5) != _trace(seed=6)


def _trace(seed: int) -> str:
    """Run five nodes that gossip and talk, and hash what they saw and when."""
    digest = hashlib.sha256()

    async def main() -> None:
        fabric = MemoryFabric(seed=seed, gossip_loss=0.2)
        async with trio.open_nursery() as nursery:
            await nursery.start(fabric.run)
            world = MemoryWorld(nursery, fabric)
            nodes = [world.make() for _ in range(5)]
            for node in nodes:

                def hear(peer: PeerId, data: bytes) -> bool:
                    digest.update(peer + data + _now())
                    return True

                node.subscribe("t", hear)

                async def talk(stream: Stream) -> None:
                    while (frame := await stream.receive_frame(100)) is not None:
                        digest.update(stream.peer_id + frame + _now())
                        await stream.send_frame(frame)

                node.serve(ECHO, talk)
            await world.start(*nodes)
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        node.remember(where(other))
                        async with await node.open_stream(other.peer_id, ECHO) as stream:
                            await stream.send_frame(b"hi")
                            await stream.receive_frame(100)
                await node.publish("t", b"news")
            await trio.sleep(5)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return digest.hexdigest()


def _now() -> bytes:
    return repr(round(trio.current_time(), 6)).encode()


async def test_node_reaches_a_peer_again_when_it_restarted_behind_a_cut(
    cut_world: MemoryWorld, cuts: set[tuple[bytes, bytes]]
) -> None:
    one, two = await make_pair(cut_world)
    cuts |= {(one.peer_id, two.peer_id), (two.peer_id, one.peer_id)}
    cut_world.fabric.crash("host2")
    again = cut_world.fabric.network("host2", two.peer_id)
    again.serve(ECHO, echo)
    await cut_world.start(again)
    cuts.clear()
    # Nobody told the first one of the crash: its half of the connection ends with the first use of it.
    with pytest.raises(TransportError, match="does not know the connection"):
        await one.open_stream(two.peer_id, ECHO)
    await check_echo(one, two.peer_id)


async def test_node_notices_a_peer_that_died_behind_a_cut(
    cut_world: MemoryWorld, cuts: set[tuple[bytes, bytes]]
) -> None:
    one, two = await make_pair(cut_world)
    cuts |= {(one.peer_id, two.peer_id), (two.peer_id, one.peer_id)}
    cut_world.fabric.crash("host2")
    await trio.sleep(limits.PING_PERIOD_S)
    assert one.connected_peers() == {two.peer_id}
    await trio.sleep(limits.PING_WAIT_S + 1)
    assert not one.connected_peers()
