"""What every implementation of ``Network`` promises about peers and streams.

Test modules import all of it and define ``world``; gossip and records are in ``conformance_records``.
"""

import pytest
import trio

from node.errors import StreamLostError, TransportError
from node.net import limits
from node.net.interface import Network, Stream
from protocol.errors import RemoteProtocolError
from protocol.units import PeerId
from tests.net.world import ECHO, WAIT_S, World, check_echo, count_tasks, echo, eventually, make_pair, where


async def test_frames_arrive_in_order_and_whole_when_their_sizes_differ(world: World) -> None:
    one, two = await make_pair(world)
    frames = [bytes([n % 251]) * (n * n) for n in range(300)] + [b"", b"x" * 700_000, b""]
    async with trio.open_nursery() as nursery, await one.open_stream(two.peer_id, ECHO) as stream:

        async def send() -> None:
            for frame in frames:
                await stream.send_frame(frame)
            await stream.finish()

        nursery.start_soon(send)
        received = []
        with trio.fail_after(WAIT_S):
            while (frame := await stream.receive_frame(1 << 20)) is not None:
                received.append(frame)
    assert received == frames


async def test_stream_tells_end_from_loss_when_peer_finishes_or_not(world: World) -> None:
    async def finish(stream: Stream) -> None:
        await stream.send_frame(b"last")
        await stream.finish()

    async def forget(stream: Stream) -> None:
        await stream.send_frame(b"last")

    one, two = world.make(), world.make()
    two.serve("/finish", finish)
    two.serve("/forget", forget)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, "/finish") as stream:
            assert await stream.receive_frame(100) == b"last"
            assert await stream.receive_frame(100) is None
            assert await stream.receive_frame(100) is None
        async with await one.open_stream(two.peer_id, "/forget") as stream:
            assert await stream.receive_frame(100) == b"last"
            with pytest.raises(StreamLostError):
                await stream.receive_frame(100)


async def test_finish_succeeds_when_peer_has_already_left_quietly(world: World) -> None:
    async def answer_without_listening_on(stream: Stream) -> None:
        request = await stream.receive_frame(100)
        assert request is not None
        await stream.send_frame(request)
        await stream.finish()

    one, two = world.make(), world.make()
    two.serve("/once", answer_without_listening_on)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, "/once") as stream:
            await stream.send_frame(b"request")
            assert await stream.receive_frame(100) == b"request"
            assert await stream.receive_frame(100) is None
            await stream.send_frame(b"nobody reads this")
            await stream.finish()


async def test_receiver_refuses_frame_when_its_prefix_is_above_the_limit(world: World) -> None:
    refusals: list[Exception] = []
    judged = trio.Event()

    async def strict(stream: Stream) -> None:
        try:
            await stream.receive_frame(1000)
        except RemoteProtocolError as exc:
            refusals.append(exc)
            raise
        finally:
            judged.set()

    one, two = world.make(), world.make()
    two.serve("/strict", strict)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, "/strict") as stream:
            await stream.send_frame(bytes(1001))
            await judged.wait()
            assert refusals
            with pytest.raises(StreamLostError):
                await stream.receive_frame(10)


async def test_sender_waits_when_receiver_does_not_read(world: World) -> None:
    one, two = world.make(), world.make()
    go = trio.Event()
    received: list[int] = []

    async def late(stream: Stream) -> None:
        await go.wait()
        while (frame := await stream.receive_frame(1 << 20)) is not None:
            received.append(frame[0])

    two.serve("/late", late)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    sent = 0

    async def send() -> None:
        nonlocal sent
        for number in range(100):
            await stream.send_frame(bytes([number]) * 65536)
            sent += 1
        await stream.finish()

    async with trio.open_nursery() as nursery:
        async with await one.open_stream(two.peer_id, "/late") as stream:
            with trio.fail_after(WAIT_S):
                async with trio.open_nursery() as senders:
                    senders.start_soon(send)
                    # Longer than the five seconds after which stock Yamux resets a stream whose reader pauses.
                    await trio.sleep(5.5)
                    assert sent * 65536 <= 2 * limits.STREAM_WINDOW_BYTES
                    go.set()
                await eventually(lambda: len(received) == 100)
        nursery.cancel_scope.cancel()
    assert received == list(range(100))


async def test_no_frame_is_lost_when_receive_is_cancelled_at_any_await(world: World) -> None:
    one, two = await make_pair(world)
    frames = [bytes([n]) * 3000 for n in range(120)]
    received: list[bytes] = []
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, ECHO) as stream:
            for frame in frames:
                await stream.send_frame(frame)
            steps = 0
            while len(received) < len(frames):
                await _cancel_after(steps % 7, _append_frame, stream, received)
                steps += 1
            await stream.finish()
    assert received == frames
    assert steps > len(frames), "no receive was cancelled: the test proves nothing"


async def _append_frame(stream: Stream, received: list[bytes]) -> None:
    frame = await stream.receive_frame(1 << 20)
    assert frame is not None
    received.append(frame)


async def _cancel_after(steps: int, function: object, *args: object) -> None:
    """Run ``function`` and cancel it after so many turns of the scheduler, and for odd ones also some time."""
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await function(*args)  # type: ignore[operator]  # any async function
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        if steps % 2:
            # Virtual time stands still as long as anybody runs.
            await trio.sleep(steps / 4000)
        nursery.cancel_scope.cancel()


async def test_other_streams_go_on_when_a_send_is_cancelled(world: World) -> None:
    one, two = world.make(), world.make()

    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async def echo_back(stream: Stream) -> None:
        while (frame := await stream.receive_frame(1 << 20)) is not None:
            await stream.send_frame(frame)

    two.serve("/deaf", deaf)
    two.serve("/echo", echo_back)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, "/echo") as other:
            for attempt in range(10):
                async with await one.open_stream(two.peer_id, "/deaf") as stream:
                    with trio.move_on_after(0.05):
                        while True:
                            await stream.send_frame(bytes(1 << 20))
                    with pytest.raises(StreamLostError):
                        await stream.send_frame(b"after a cut frame")
                await other.send_frame(bytes([attempt]))
                assert await other.receive_frame(10) == bytes([attempt])


async def test_open_leaves_no_slot_when_it_is_cancelled_at_any_await(world: World) -> None:
    one, two = await make_pair(world)
    for steps in range(4 * limits.STREAMS_PER_PROTOCOL_MAX):
        await _cancel_after(steps % 40, _open_and_reset, one, two.peer_id)
    with trio.fail_after(WAIT_S):
        # A slot that a cancelled open held too long may still be on its way back.
        opened = [await one.open_stream(two.peer_id, ECHO) for _ in range(limits.STREAMS_PER_PROTOCOL_MAX // 2)]
        for stream in opened:
            await stream.send_frame(b"here")
            assert await stream.receive_frame(10) == b"here"
            await stream.reset()


async def _open_and_reset(network: Network, peer_id: PeerId) -> None:
    await (await network.open_stream(peer_id, ECHO)).reset()


async def test_peer_gets_no_more_streams_when_it_holds_the_limit(world: World) -> None:
    one, two = await make_pair(world)
    with trio.fail_after(WAIT_S):
        held = [await one.open_stream(two.peer_id, ECHO) for _ in range(limits.STREAMS_PER_PROTOCOL_MAX)]
        for stream in held:
            await stream.send_frame(b"here")
            assert await stream.receive_frame(10) == b"here"
        with pytest.raises(TransportError):
            async with await one.open_stream(two.peer_id, ECHO) as extra:
                await extra.receive_frame(10)
        for stream in held:
            await stream.reset()


async def test_only_its_stream_is_reset_when_a_handler_raises(world: World) -> None:
    one, two = world.make(), world.make()

    async def broken(stream: Stream) -> None:
        raise ValueError("a bug")

    async def echo_back(stream: Stream) -> None:
        while (frame := await stream.receive_frame(1 << 20)) is not None:
            await stream.send_frame(frame)

    two.serve("/broken", broken)
    two.serve(ECHO, echo_back)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, ECHO) as other:
            async with await one.open_stream(two.peer_id, "/broken") as stream:
                with pytest.raises(StreamLostError):
                    await stream.receive_frame(10)
            await other.send_frame(b"still here")
            assert await other.receive_frame(100) == b"still here"


async def test_each_end_knows_the_other_when_a_stream_opens(world: World) -> None:
    one, two = world.make(), world.make()
    seen: list[PeerId] = []

    async def look(stream: Stream) -> None:
        seen.append(stream.peer_id)
        await stream.finish()

    two.serve("/look", look)
    await world.start(one, two)
    assert await one.dial(two.addresses[0]) == two.peer_id
    async with await one.open_stream(two.peer_id, "/look") as stream:
        assert stream.peer_id == two.peer_id
        assert await stream.receive_frame(0) is None
    assert seen == [one.peer_id]


async def test_dial_is_refused_when_another_peer_answers(world: World) -> None:
    one, two, three = world.make(), world.make(), world.make()
    await world.start(one, two, three)
    wrong = two.addresses[0].replace(two.addresses[0].rpartition("/")[2], three.addresses[0].rpartition("/")[2])
    with pytest.raises(TransportError, match=wrong.split("/")[2]):
        await one.dial(wrong)
    assert not one.connected_peers()


async def test_dial_names_the_address_when_nobody_listens(world: World) -> None:
    one, two = world.make(), world.make()
    await world.start(one)
    address = world.dead_address(two.peer_id)
    with pytest.raises(TransportError, match=address.partition("/p2p/")[0]):
        await one.dial(address)
    with pytest.raises(TransportError, match="expected"):
        await one.dial("/ip4/nonsense")


async def test_open_stream_dials_when_the_address_was_remembered(world: World) -> None:
    _one, two = await make_pair(world)
    three = world.make()
    await world.start(three)
    with pytest.raises(TransportError):
        await three.open_stream(two.peer_id, ECHO)
    three.remember(where(two))
    await check_echo(three, two.peer_id)


async def test_open_stream_says_so_when_the_protocol_is_unknown(world: World) -> None:
    one, two = await make_pair(world)
    with pytest.raises(TransportError, match="/nobody/serves/this"):
        await one.open_stream(two.peer_id, "/nobody/serves/this")
    await check_echo(one, two.peer_id)


async def test_callback_hears_of_a_peer_once_when_both_sides_dial(world: World) -> None:
    one, two = world.make(), world.make()
    heard: list[tuple[int, PeerId]] = []
    one.on_connected(lambda peer_id: heard.append((1, peer_id)))
    two.on_connected(lambda peer_id: heard.append((2, peer_id)))
    await world.start(one, two)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.dial, two.addresses[0])
        nursery.start_soon(two.dial, one.addresses[0])
    await one.dial(two.addresses[0])
    await eventually(lambda: len(heard) == 2)
    assert sorted(heard) == [(1, two.peer_id), (2, one.peer_id)]
    assert one.connected_peers() == {two.peer_id}


async def test_streams_are_lost_and_peers_can_return_when_one_disconnects(world: World) -> None:
    one, two = await make_pair(world)
    with trio.fail_after(WAIT_S):
        async with await one.open_stream(two.peer_id, ECHO) as stream:
            await one.disconnect(two.peer_id)
            with pytest.raises(StreamLostError):
                await stream.receive_frame(10)
    await eventually(lambda: not one.connected_peers() and not two.connected_peers())
    await check_echo(one, two.peer_id)
    await one.disconnect(world.make().peer_id)


async def test_nobody_refused_connects_in_either_direction(world: World) -> None:
    one, two = world.make(), world.make()
    refused: set[PeerId] = set()
    one.refuse(lambda peer_id: peer_id in refused)
    for network in (one, two):
        network.serve(ECHO, echo)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    refused.add(two.peer_id)
    with pytest.raises(TransportError, match="refused by this node"):
        await one.open_stream(two.peer_id, ECHO)  # although the connection stands
    with pytest.raises(TransportError, match="refused by this node"):
        await one.ping(two.peer_id)
    await one.disconnect(two.peer_id)
    await eventually(lambda: not two.connected_peers())
    with pytest.raises(TransportError, match="refused by this node"):
        await one.dial(two.addresses[0])
    # The handshake names who dials; over sockets the dialler may learn only afterwards that it was for nothing.
    with trio.fail_after(WAIT_S), pytest.raises(TransportError):
        await two.open_stream(one.peer_id, ECHO)
    await eventually(lambda: not two.connected_peers())
    assert not one.connected_peers()
    refused.clear()
    await check_echo(one, two.peer_id)
    await check_echo(two, one.peer_id)


async def test_ping_measures_a_round_trip_and_dials_if_need_be(world: World) -> None:
    one, two = world.make(), world.make()
    await world.start(one, two)
    with pytest.raises(TransportError):
        await one.ping(two.peer_id)
    assert one.contact(two.peer_id).connections == ()
    one.remember(where(two))
    with trio.fail_after(WAIT_S):
        assert 0 < await one.ping(two.peer_id) < WAIT_S
    await eventually(lambda: two.connected_peers() == {one.peer_id})
    (ours,) = one.contact(two.peer_id).connections
    (theirs,) = two.contact(one.peer_id).connections
    assert not ours.is_inbound and theirs.is_inbound
    assert ours.address in two.addresses[0] and one.contact(two.peer_id).addresses


async def test_slots_come_back_when_streams_open_and_close_300_times(world: World) -> None:
    one, two = await make_pair(world)
    await check_echo(one, two.peer_id)
    tasks = count_tasks()
    for number in range(300):
        if number % 3:
            await check_echo(one, two.peer_id)
        else:
            await (await one.open_stream(two.peer_id, ECHO)).reset()
    await eventually(lambda: count_tasks() <= tasks + 2)
    await check_echo(one, two.peer_id)


async def test_peer_sees_loss_when_a_busy_node_stops_and_nothing_is_left(world: World) -> None:
    before = count_tasks()
    one, two = await make_pair(world)
    async with trio.open_nursery() as nursery, await one.open_stream(two.peer_id, ECHO) as stream:

        async def send() -> None:
            with pytest.raises(StreamLostError):
                await _send_for_ever(stream)

        nursery.start_soon(send)
        for _ in range(3):
            await stream.receive_frame(1 << 20)
        with trio.fail_after(WAIT_S):
            await world.stop(two)
            with pytest.raises(StreamLostError):
                await _receive_for_ever(stream)
    assert two.addresses == ()
    with pytest.raises(TransportError):
        await two.open_stream(one.peer_id, ECHO)
    await eventually(lambda: not one.connected_peers())
    await world.stop(one)
    await eventually(lambda: count_tasks() <= before)


async def _send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send_frame(bytes(65536))


async def _receive_for_ever(stream: Stream) -> None:
    while True:
        await stream.receive_frame(1 << 20)


async def test_second_node_is_refused_when_its_address_is_taken(world: World) -> None:
    one = world.make()
    await world.start(one)
    with trio.fail_after(WAIT_S), pytest.raises(TransportError, match="cannot listen on"):
        await world.make_at(one.addresses[0]).run()
    two = world.make()
    await world.start(two)
    assert await two.dial(one.addresses[0]) == one.peer_id
