"""Streams that peers open: counted, handed to their handler, closed whatever happens."""

import logging
from collections import Counter
from collections.abc import Callable

from libp2p.abc import INetStream
from libp2p.peer.id import ID

from node.errors import StreamLostError
from node.net import limits
from node.net.interface import StreamHandler
from node.net.libp2p.stream import LibP2pStream
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_to_text

log = logging.getLogger(__name__)


class InboundStreams:
    """Runs handlers, at most so many at once for one peer and protocol."""

    def __init__(self, wrap: Callable[[INetStream, str], LibP2pStream]) -> None:
        self._wrap = wrap
        self._open: Counter[tuple[ID, str]] = Counter()

    async def serve(self, protocol: str, handler: StreamHandler, inner: INetStream) -> None:
        """Run ``handler`` on one stream; only cancellation leaves."""
        key = (inner.muxed_conn.peer_id, protocol)
        if self._open[key] >= limits.STREAMS_PER_PROTOCOL_MAX:
            await inner.reset()
            return
        self._open[key] += 1
        try:
            await self._run(protocol, handler, self._wrap(inner, protocol))
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def _run(self, protocol: str, handler: StreamHandler, stream: LibP2pStream) -> None:
        event = {"peer": peer_id_to_text(stream.peer_id), "protocol": protocol}
        try:
            async with stream:
                await handler(stream)
        except (StreamLostError, RemoteProtocolError) as exc:
            log.info("stream_ended_early", extra={**event, "cause": str(exc)})
        except Exception as exc:  # the edge of one conversation: the others and the connection go on
            log.warning("stream_handler_failed", extra={**event, "cause": repr(exc)}, exc_info=exc)
