"""Stream multiplexing that survives slow readers, cancelled writers and silent peers.

Subclasses of py-libp2p 0.8.1's Yamux. ``node.net.libp2p.patches`` puts them in its place, because 0.8.1 ignores
the class given in its options. Each method says which fault it cures; the wire format is untouched.
"""

import struct
from collections.abc import Callable
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux import yamux as stock

from node.net import limits

# One Yamux frame fills exactly one Noise message. Stock frames of 64 KiB are cut into two.
PAYLOAD_BYTES_MAX = 65519 - stock.HEADER_SIZE
_GROW_AFTER_BYTES = 32 * 1024
_LOST = (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def _header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return struct.pack(stock.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)


def _ignore(_rtt_s: float) -> None:
    return


class SafeStream(stock.YamuxStream):
    """A Yamux stream with event-driven flow control and batched credit.

    Stock polls every 10 ms for credit and resets a stream whose reader pauses for five seconds; it also answers
    every read, even of one byte, with a credit frame.
    """

    conn: "SafeYamux"

    def __init__(self, stream_id: int, conn: "SafeYamux", is_initiator: bool) -> None:
        self._send_window = stock.DEFAULT_WINDOW_SIZE
        self._recv_window = stock.DEFAULT_WINDOW_SIZE
        self._closed = False
        self._wakeup = trio.Event()
        self._inbox: bytearray | None = None
        super().__init__(stream_id, conn, is_initiator)

    # The three attributes are properties so that the library's own assignments wake our writers and are checked.
    @property
    def send_window(self) -> int:
        return self._send_window

    @send_window.setter
    def send_window(self, value: int) -> None:
        self._send_window = value
        self._wakeup.set()

    @property
    def closed(self) -> bool:
        return self._closed

    @closed.setter
    def closed(self, value: bool) -> None:
        self._closed = value
        self._wakeup.set()

    @property
    def recv_window(self) -> int:
        return self._recv_window

    @recv_window.setter
    def recv_window(self, value: int) -> None:
        # Stock only logs a peer that sends beyond its credit, and keeps buffering what it sends.
        if value < 0:
            self.conn.overrun = True
        self._recv_window = max(0, value)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; waits for credit until cancelled, and never leaves half a frame on the wire."""
        view = memoryview(data)
        while view:
            self._check_sendable()
            if self._send_window <= 0:
                if self._wakeup.is_set():
                    self._wakeup = trio.Event()
                await self._wakeup.wait()
                continue
            view = view[await self._write_some(view) :]

    async def _write_some(self, view: memoryview) -> int:
        try:
            # Waiting for the lock may be cancelled: nothing of this frame is on the wire yet.
            async with self.conn._write_lock:
                self._check_sendable()
                size = min(self._send_window, PAYLOAD_BYTES_MAX, len(view))
                if size <= 0:
                    return 0
                self._send_window -= size
                await self.conn.put(_header(stock.TYPE_DATA, 0, self.stream_id, size) + view[:size])
        except _LOST as exc:
            raise MuxedStreamReset("the connection is lost") from exc
        await trio.lowlevel.checkpoint()
        return size

    def _check_sendable(self) -> None:
        if self.send_closed or self.closed:
            raise MuxedStreamError("the stream is closed for sending")

    async def read(self, n: int | None = -1) -> bytes:
        """Return what has arrived, at most ``n`` bytes; cancelling loses nothing.

        Stock forgets unread bytes when the connection closes, and leaves a reader asleep when its own side resets.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._inbox is None:
                self._inbox = self.conn.stream_buffers.get(self.stream_id)
            if self._inbox:
                return await self._take(len(self._inbox) if n is None or n < 0 else n)
            if self.reset_received:
                raise MuxedStreamReset("the stream was reset")
            event = self.conn.stream_events.get(self.stream_id)
            if self.recv_closed or self.closed or event is None:
                raise MuxedStreamEOF("the stream is closed for receiving")
            if event.is_set():
                event = self.conn.stream_events[self.stream_id] = trio.Event()
            await event.wait()

    async def _take(self, size: int) -> bytes:
        assert self._inbox is not None
        data = bytes(self._inbox[:size])
        del self._inbox[:size]
        # From here on nothing may be cancelled: the bytes have left the buffer.
        with trio.CancelScope(shield=True):
            if self.closed:
                await self.conn._finalize_stream(self, fully_closed=True)
            else:
                await self._auto_tune_and_send_window_update(bytes_read=len(data))
        return data

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        """Give credit back in quarters of the window; a stream that carries bulk gets the large window."""
        self._pending_recv_release += bytes_read
        credit = self._pending_recv_release
        if self.target_recv_window < limits.STREAM_WINDOW_BYTES and credit >= _GROW_AFTER_BYTES:
            credit += limits.STREAM_WINDOW_BYTES - self.target_recv_window
            self.target_recv_window = limits.STREAM_WINDOW_BYTES
        elif credit < self.target_recv_window // 4:
            return
        self._pending_recv_release = 0
        self.recv_window += credit
        # In the connection's own task: a reader must not wait, uncancellable, for a socket that is full.
        self.conn.write_soon(_header(stock.TYPE_WINDOW_UPDATE, 0, self.stream_id, credit))

    async def reset(self) -> None:
        """Give the stream up at once, both ways; a reader or writer of ours wakes with an error.

        Stock waits for the socket first, so that a full one keeps the stream alive.
        """
        if not self.closed:
            self.send_closed = self.recv_closed = self.reset_received = True
            self.closed = True
            if self.stream_id in self.conn.streams:
                self.conn.stream_buffers[self.stream_id].clear()
                self.conn.stream_events[self.stream_id].set()
            self.conn.write_soon(_header(stock.TYPE_WINDOW_UPDATE, stock.FLAG_RST, self.stream_id, 0))
        await self.conn._finalize_stream(self, fully_closed=True)


class SafeYamux(stock.Yamux):
    """A Yamux connection whose frames reach the wire whole or not at all."""

    def __init__(
        self, secured_conn: Any, peer_id: ID, is_initiator: bool | None = None, on_close: Any = None
    ) -> None:  # Any: as the library's own signature, which has no type for either
        super().__init__(secured_conn, peer_id, is_initiator, on_close)
        self.overrun = False
        self.on_rtt: Callable[[float], None] = _ignore
        """Told of each ping that was answered; the swarm sets it."""
        self._leaving = False
        self._write_scope: trio.CancelScope | None = None

    async def put(self, frame: bytes) -> None:
        """Write one frame whole. The caller holds the write lock.

        Shielded: a write cancelled half-way leaves half a Noise message on the wire, and every stream of the
        connection dies with "failed authentication". A socket that takes nothing ends the connection instead.
        """
        if self.event_shutting_down.is_set():
            raise ConnectionClosedError("the connection is shutting down", transport="tcp")
        wait_s = limits.CLOSE_WRITE_S if self._leaving else limits.WRITE_S
        with trio.move_on_after(wait_s, shield=True) as self._write_scope:
            await self.secured_conn.write(frame)
        if self._write_scope.cancelled_caught:
            self.event_shutting_down.set()
            with trio.CancelScope(shield=True):
                await self.secured_conn.close()
            raise ConnectionClosedError("the socket took nothing for too long", transport="tcp")

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            await self.put(data)
        await trio.lowlevel.checkpoint()

    def write_soon(self, frame: bytes) -> None:
        """Write a small frame from the connection's own task; a dead connection swallows it."""
        if self._nursery is not None and not self.event_shutting_down.is_set():
            self._nursery.start_soon(self._write_quietly, frame)

    async def _write_quietly(self, frame: bytes) -> None:
        try:
            await self._write_frame(frame)
        except _LOST:
            # The connection is going down; whoever reads from it is told there.
            return

    async def open_stream(self) -> stock.YamuxStream:
        """Open a stream; a cancelled open leaves no slot and no half-open stream behind, as stock does."""
        await self.stream_backlog_semaphore.acquire()
        self.stream_backlog_semaphore.release()
        with trio.CancelScope(shield=True):
            stream = await super().open_stream()
        return stream  # noqa: RET504 (mypy takes a cancel scope for one that may swallow the return)

    async def _read_data_body(self, length: int) -> bytes:
        """Refuse, by closing, a frame that no credit of ours covers: stock buffers 16 MiB for each stream."""
        if length > limits.STREAM_WINDOW_BYTES or self.overrun:
            raise trio.TooSlowError  # the one exception on which the library closes the connection
        return await super()._read_data_body(length)

    async def _measure_rtt_loop(self) -> None:
        """Ping, and close the connection of a peer that does not answer; stock pings and ignores the silence."""
        while not self.event_shutting_down.is_set():
            with trio.move_on_after(limits.PING_PERIOD_S):
                await self.event_shutting_down.wait()
                return
            self._ping_id += 1
            self._ping_event = trio.Event()
            self._ping_sent_time = trio.current_time()
            await self._write_quietly(_header(stock.TYPE_PING, stock.FLAG_SYN, 0, self._ping_id))
            with trio.move_on_after(limits.PING_WAIT_S) as patience:
                await self._ping_event.wait()
                self.on_rtt(trio.current_time() - self._ping_sent_time)
            if patience.cancelled_caught:
                # The reading task sees the closed socket and cleans up.
                await self.secured_conn.close()
                return

    async def close(self, error_code: int = stock.GO_AWAY_NORMAL) -> None:
        """Say goodbye, within a second even if a write is stuck, and close."""
        self._leaving = True
        if self._write_scope is not None:
            latest = trio.current_time() + limits.CLOSE_WRITE_S
            self._write_scope.deadline = min(self._write_scope.deadline, latest)
        await super().close(error_code)
