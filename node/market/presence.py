"""Work that is done for a peer only while it stays: a place must not be kept for one that has left."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from node.errors import StreamLostError
from node.market.party import Line
from protocol.errors import Reason, RemoteProtocolError

T = TypeVar("T")


async def run_unless_left(line: Line, work: Callable[[], Awaitable[T]], *expected: type[Exception]) -> T:
    """Return what ``work`` returns; a peer that ends its stream, or speaks out of turn, cancels it.

    ``expected`` is what ``work`` may raise: it comes out bare, and not in a group.

    Raises:
        StreamLostError: the peer left.
        RemoteProtocolError: it said something while it was our turn.
    """
    results: list[T] = []
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            try:
                frame = await line.receive_untrusted()
                failures.append(
                    StreamLostError("the peer left while its offer was looked at")
                    if frame is None
                    else RemoteProtocolError("a frame came before our answer", reason=Reason.ORDER)
                )
            except (StreamLostError, RemoteProtocolError) as exc:
                failures.append(exc)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            results.append(await work())
        except expected as exc:
            failures.append(exc)
        nursery.cancel_scope.cancel()
    # A result counts even where the peer left in the same moment: what it holds has to be given back.
    if results:
        return results[0]
    raise failures[0]
