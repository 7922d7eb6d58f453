"""Work that is done for a peer only while it stays: a place must not be kept for one that has left."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from node.errors import StreamLostError
from node.market.party import Line
from node.race import run_unless
from protocol.errors import Reason, RemoteProtocolError

T = TypeVar("T")


async def run_unless_left(line: Line, work: Callable[[], Awaitable[T]], *expected: type[Exception]) -> T:
    """Return what ``work`` returns; a peer that ends its stream, or speaks out of turn, cancels it.

    ``expected`` is what ``work`` may raise: it comes out bare, and not in a group.

    Raises:
        StreamLostError: the peer left.
        RemoteProtocolError: it said something while it was our turn.
    """

    async def gone() -> Exception:
        try:
            frame = await line.receive_untrusted()
        except (StreamLostError, RemoteProtocolError) as exc:
            return exc
        if frame is None:
            return StreamLostError("the peer left while its offer was looked at")
        return RemoteProtocolError("a frame came before our answer", reason=Reason.ORDER)

    return await run_unless(gone, work, *expected)
