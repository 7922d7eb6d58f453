"""One libp2p ping (``/ipfs/ping/1.0.0``): 32 random bytes there and back on a stream of their own.

Not the library's ``PingService``: it tells whole milliseconds of the wall clock and keeps its streams for later.
"""

import secrets
from typing import Final

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PING_LENGTH
from libp2p.io.utils import read_exactly

from node.errors import TransportError
from node.net import limits
from node.net.libp2p.peers import to_libp2p
from protocol.identity import peer_id_to_text
from protocol.units import PeerId

_LOST: Final = (BaseLibp2pError, OSError)


async def ping(host: BasicHost, peer_id: PeerId) -> float:
    """Return a connected peer's round trip in seconds; waits for as long as it takes. Raises: TransportError."""
    who = peer_id_to_text(peer_id)
    try:
        stream = await host.new_stream(to_libp2p(peer_id), [PING])
    except _LOST as exc:
        raise TransportError(f"peer {who} takes no ping: {exc.__cause__ or exc}") from exc
    try:
        said = secrets.token_bytes(PING_LENGTH)
        began = trio.current_time()
        await stream.write(said)
        answer = await read_exactly(stream, PING_LENGTH)
        took_s = trio.current_time() - began
    except _LOST as exc:
        raise TransportError(f"peer {who} did not answer a ping: {type(exc).__name__} {exc}".rstrip()) from exc
    finally:
        with trio.move_on_after(limits.CLOSE_WRITE_S, shield=True):
            await stream.reset()
    if answer != said:
        raise TransportError(f"peer {who} answered a ping with other bytes than it was sent")
    return took_s
