"""Frames on a libp2p stream (spec 02, section 3): a big-endian u32 length, then that many bytes.

Length 0xFFFFFFFF is the end frame: EOF alone proves nothing, because a killed peer, a reset and a clean close all
read as EOF in libp2p.
"""

from collections.abc import Callable
from typing import Final, Self

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream

from node.errors import StreamLostError
from node.metrics import Wire
from node.net import limits
from protocol.errors import Reason, RemoteProtocolError
from protocol.identity import peer_id_to_text
from protocol.units import PeerId

PREFIX_BYTES: Final = 4
END: Final = 0xFFFFFFFF
# Small reads cost one credit computation each; this is the largest Yamux frame and a bit.
_READ_BYTES: Final = 65536


class LibP2pStream:
    """Implements ``node.net.interface.Stream``.

    Reads and writes go to the multiplexed stream directly: libp2p's ``NetStream`` refuses reads once a connection
    is lost, although the last frames and the end frame have arrived.
    """

    def __init__(
        self, inner: NetStream, peer_id: PeerId, *, linger: Callable[["LibP2pStream"], bool], wire: Wire
    ) -> None:
        """``linger`` takes over a stream that we finished and the peer has not, or returns False."""
        self._inner = inner
        self._peer_id = peer_id
        self._linger = linger
        self._wire = wire
        self._buffer = bytearray()
        self._ended = False
        self._finished = False
        self._broken = False
        self._cut = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send_frame(self, frame: bytes) -> None:
        """Send one frame in one write: two writers would otherwise interleave inside it."""
        assert len(frame) < END
        assert not self._finished, "a finished stream takes no more frames"
        await self._write(len(frame).to_bytes(PREFIX_BYTES, "big") + frame)
        self._wire.sent(len(frame))

    async def receive_frame(self, size_max: int) -> bytes | None:
        if self._ended:
            await trio.lowlevel.checkpoint()
            return None
        await self._fill(PREFIX_BYTES)
        length = int.from_bytes(self._buffer[:PREFIX_BYTES], "big")
        if length == END:
            self._ended = True
            self._buffer.clear()
            return None
        if length > size_max:
            await self.reset()
            raise RemoteProtocolError(f"a frame of {length} bytes, above {size_max}", reason=Reason.SIZE)
        await self._fill(PREFIX_BYTES + length)
        frame = bytes(self._buffer[PREFIX_BYTES : PREFIX_BYTES + length])
        del self._buffer[: PREFIX_BYTES + length]
        self._wire.received(length)
        return frame

    async def finish(self) -> None:
        if self._finished:
            return
        await self._write(END.to_bytes(PREFIX_BYTES, "big"))
        self._finished = True
        try:
            await self._inner.close_write()
        except BaseLibp2pError as exc:
            self._broken = True
            raise self._lost() from exc

    async def reset(self) -> None:
        self._broken = True
        with trio.move_on_after(limits.CLOSE_WRITE_S, shield=True):
            try:
                await self._inner.reset()
            except Exception:  # never raises: whatever a half-dead connection throws, the stream is given up
                return

    async def drain(self) -> None:
        """Read to the peer's end and forget it, then close; the caller sets the deadline, and resets after it."""
        try:
            while True:
                await self._inner.muxed_stream.read(_READ_BYTES)
        except BaseLibp2pError:
            await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None or not self._finished or self._broken or self._cut:
            await self.reset()
        elif self._ended:
            await self._close()
        elif not self._linger(self):
            await self.reset()

    async def _fill(self, size: int) -> None:
        """Wait until the buffer holds ``size`` bytes."""
        await trio.lowlevel.checkpoint()
        while len(self._buffer) < size:
            if self._broken:
                raise self._lost()
            try:
                data = await self._inner.muxed_stream.read(_READ_BYTES)
            except BaseLibp2pError as exc:
                raise self._lost() from exc
            self._buffer += data

    async def _write(self, data: bytes) -> None:
        if self._broken or self._cut:
            raise self._lost()
        # Until the write returns, a frame may be cut: then nothing may follow it. Reading goes on meanwhile.
        self._cut = True
        try:
            await self._inner.muxed_stream.write(data)
        except BaseLibp2pError as exc:
            raise self._lost() from exc
        self._cut = False

    async def _close(self) -> None:
        with trio.move_on_after(limits.CLOSE_WRITE_S, shield=True):
            try:
                await self._inner.close()
            except Exception:  # never raises: both ends have said their last frame, nothing can be lost
                return

    def _lost(self) -> StreamLostError:
        return StreamLostError(f"the stream to {peer_id_to_text(self._peer_id)} broke before its end frame")
