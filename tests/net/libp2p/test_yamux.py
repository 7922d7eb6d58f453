"""Each fault of stock Yamux 0.8.1 that the subclasses cure; the peer is a script, time is virtual."""

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux as stock
from trio.testing import MockClock, wait_all_tasks_blocked

from node.net import limits
from tests.net.libp2p.fakes import make_link


async def test_frame_reaches_the_wire_whole_when_its_write_is_cancelled(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, _peer = make_link()
    nursery.start_soon(muxer.start)
    stream = await muxer.open_stream()
    for steps in range(12):
        async with trio.open_nursery() as writing:
            writing.start_soon(stream.write, bytes(1000))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            writing.cancel_scope.cancel()
        assert connection.halves == 0, f"half a frame is out after a cancel at step {steps}"


async def test_connection_is_given_up_when_the_socket_takes_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, _peer = make_link()
    nursery.start_soon(muxer.start)
    stream = await muxer.open_stream()
    connection.accepting = False
    start = trio.current_time()
    with pytest.raises(MuxedStreamError):
        await stream.write(b"stuck")
    assert trio.current_time() - start == pytest.approx(limits.WRITE_S)
    assert connection.is_closed


async def test_close_takes_a_second_when_a_write_is_stuck(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, _peer = make_link()
    nursery.start_soon(muxer.start)
    stream = await muxer.open_stream()
    connection.accepting = False

    async def write() -> None:
        with pytest.raises(MuxedStreamError):
            await stream.write(b"stuck")

    nursery.start_soon(write)
    await wait_all_tasks_blocked()
    start = trio.current_time()
    await muxer.close()
    assert trio.current_time() - start < 2 * limits.CLOSE_WRITE_S + 0.5


async def test_stream_waits_when_the_reader_pauses_for_an_hour(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, peer = make_link()
    nursery.start_soon(muxer.start)
    nursery.start_soon(peer.answer_pings)
    stream = await muxer.open_stream()
    done = trio.Event()

    async def write() -> None:
        await stream.write(bytes(stock.DEFAULT_WINDOW_SIZE + 1))
        done.set()

    nursery.start_soon(write)
    await trio.sleep(3600)
    assert not done.is_set() and not connection.is_closed
    await peer.send(stock.TYPE_WINDOW_UPDATE, 0, stream.stream_id, 1)
    await done.wait()
    await muxer.close()


async def test_round_trip_of_each_ping_is_told(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    _connection, muxer, peer = make_link()
    told: list[float] = []
    muxer.on_rtt = told.append
    nursery.start_soon(muxer.start)
    await trio.sleep(limits.PING_PERIOD_S + 0.25)
    nursery.start_soon(peer.answer_pings)
    await trio.sleep(limits.PING_PERIOD_S + 1)
    assert told == [pytest.approx(0.25), pytest.approx(0)]
    await muxer.close()


async def test_connection_ends_when_the_peer_answers_no_ping(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, _silent = make_link()
    await muxer.start()
    assert connection.is_closed
    assert trio.current_time() == pytest.approx(limits.PING_PERIOD_S + limits.PING_WAIT_S, abs=1)


async def test_connection_ends_when_the_peer_sends_beyond_its_credit(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, peer = make_link()
    nursery.start_soon(peer.answer_pings)

    async def flood() -> None:
        stream = await muxer.open_stream()
        body = bytes(1 << 15)
        for _ in range(stock.DEFAULT_WINDOW_SIZE // len(body) + 2):
            await peer.send(stock.TYPE_DATA, 0, stream.stream_id, len(body), body)

    nursery.start_soon(flood)
    with trio.fail_after(3600):
        await muxer.start()
    assert connection.is_closed
    assert trio.current_time() < limits.PING_PERIOD_S


async def test_connection_ends_when_a_frame_announces_more_than_any_window(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    connection, muxer, peer = make_link()

    async def announce() -> None:
        stream = await muxer.open_stream()
        await peer.send(stock.TYPE_DATA, 0, stream.stream_id, limits.STREAM_WINDOW_BYTES + 1)

    nursery.start_soon(announce)
    await muxer.start()
    assert connection.is_closed
    assert trio.current_time() < limits.PING_PERIOD_S


async def test_reader_gets_what_had_arrived_when_the_connection_is_lost(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    _connection, muxer, peer = make_link()
    nursery.start_soon(muxer.start)
    stream = await muxer.open_stream()
    with trio.move_on_after(1):
        await stream.read(1)
    await peer.send(stock.TYPE_DATA, 0, stream.stream_id, 4, b"last")
    peer.outgoing.close()
    await muxer.event_closed.wait()
    assert await stream.read(100) == b"last"
    with pytest.raises((MuxedStreamEOF, MuxedStreamReset)):
        await stream.read(100)


async def test_reader_wakes_when_its_own_side_resets(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    _connection, muxer, peer = make_link()
    nursery.start_soon(muxer.start)
    nursery.start_soon(peer.answer_pings)
    stream = await muxer.open_stream()
    woken = trio.Event()

    async def read() -> None:
        with pytest.raises(MuxedStreamReset):
            await stream.read(1)
        woken.set()

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    await stream.reset()
    with trio.fail_after(1):
        await woken.wait()
    assert not muxer.streams and not muxer.stream_buffers and not muxer.stream_events
    await muxer.close()


async def test_small_reads_cost_no_credit_frame_each(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    connection, muxer, peer = make_link()
    nursery.start_soon(muxer.start)
    stream = await muxer.open_stream()
    await trio.sleep(0.1)
    written = len(connection.written)
    await peer.send(stock.TYPE_DATA, 0, stream.stream_id, 1000, bytes(1000))
    for _ in range(1000):
        await stream.read(1)
    await wait_all_tasks_blocked()
    assert len(connection.written) == written
    await muxer.close()


async def test_open_leaves_no_stream_when_it_is_cancelled(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    _connection, muxer, _peer = make_link()
    nursery.start_soon(muxer.start)
    await muxer.event_started.wait()

    async def open_and_reset() -> None:
        # The caller's side: what an open has returned is the caller's to close.
        with trio.CancelScope(shield=True):
            stream = await muxer.open_stream()
            await stream.reset()

    for steps in range(10):
        async with trio.open_nursery() as opening:
            opening.start_soon(open_and_reset)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            opening.cancel_scope.cancel()
    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        await muxer.open_stream()
    assert not muxer.streams
    assert muxer.stream_backlog_semaphore.value == 256
    await muxer.close()
