"""The encrypted connection under a multiplexer, without keys or sockets, and a peer that speaks raw Yamux."""

import struct
from typing import Any, cast

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux import yamux as stock

from node.net.libp2p import patches
from node.net.libp2p.yamux import SafeYamux

PEER = ID(b"peer")


class FakeSecureConn:
    """One end of a pipe; ``accepting`` False makes writes hang, as a socket whose peer is frozen."""

    def __init__(
        self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.accepting = True
        self.written = bytearray()
        self.halves = 0
        self.is_initiator = True
        self._outgoing = outgoing
        self._incoming = incoming
        self._rest = bytearray()
        self._closed = trio.Event()

    async def write(self, data: bytes) -> None:
        """Write in two halves with an await between, as a full socket does."""
        half = len(data) // 2
        self.written += data[:half]
        self.halves += 1
        if not self.accepting:
            await self._closed.wait()
            raise ConnectionClosedError("closed", transport="fake")
        await trio.lowlevel.checkpoint()
        self.written += data[half:]
        self.halves -= 1
        await self._outgoing.send(bytes(data))

    async def read(self, n: int | None = None) -> bytes:
        while not self._rest:
            if self._closed.is_set():
                return b""
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    try:
                        self._rest += await self._incoming.receive()
                    except trio.EndOfChannel:
                        self._closed.set()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(receive)
                await self._closed.wait()
                nursery.cancel_scope.cancel()
        size = len(self._rest) if n is None else n
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    async def close(self) -> None:
        self._closed.set()
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()


class RawPeer:
    """The other end: sends frames as they are given, and collects what arrives."""

    def __init__(
        self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.outgoing = outgoing
        self.incoming = incoming

    async def send(self, kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> None:
        await self.outgoing.send(struct.pack(stock.YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length) + body)

    async def answer_pings(self) -> None:
        async for frame in self.incoming:
            _, kind, flags, _, value = struct.unpack(stock.YAMUX_HEADER_FORMAT, frame[: stock.HEADER_SIZE])
            if kind == stock.TYPE_PING and flags & stock.FLAG_SYN:
                await self.send(stock.TYPE_PING, stock.FLAG_ACK, 0, value)


def make_link() -> tuple[FakeSecureConn, SafeYamux, RawPeer]:
    """Return our end, the multiplexer on it (not started), and the peer."""
    patches.apply()
    ours_in, theirs_out = trio.open_memory_channel[bytes](1000)
    theirs_in, ours_out = trio.open_memory_channel[bytes](1000)
    connection = FakeSecureConn(ours_in, ours_out)
    # Any: the multiplexer needs four methods of the library's thirteen.
    muxer = SafeYamux(cast(Any, connection), PEER, is_initiator=True)
    return connection, muxer, RawPeer(theirs_in, theirs_out)
