"""Requests as they come in: bodies within their bounds, places in the queue, and clients that go away."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio
from starlette.types import Receive

from node.api.errors import ApiError, ClientGoneError
from node.errors import NodeError
from node.race import run_unless

BODY_S_MAX: Final = 30.0
QUEUE_RETRY_S: Final = 1
READERS_MAX: Final = 32
READERS_RETRY_S: Final = 5

T = TypeVar("T")


class Admission:
    """Counts the requests in work; more than ``places`` are refused, not queued."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one place for as long as the block runs.

        Raises:
            ApiError: 429 ``queue_full``.
        """
        if self._taken >= self._places:
            raise ApiError(
                f"{self._taken} requests are in work, the bound of api.max_queue; retry when one has ended",
                status=429,
                code="queue_full",
                retry_after_s=QUEUE_RETRY_S,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Readers:
    """Counts those who follow one stream; beyond ``READERS_MAX`` they are refused."""

    def __init__(self, what: str) -> None:
        """``what`` is followed, for the message."""
        self._what = what
        self._count = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count as a reader for as long as the block runs.

        Raises:
            ApiError: 429 ``too_many_readers``.
        """
        if self._count >= READERS_MAX:
            raise ApiError(
                f"{READERS_MAX} readers follow {self._what} of this node already",
                status=429,
                code="too_many_readers",
                retry_after_s=READERS_RETRY_S,
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body; the guard bounds its size.

    Raises:
        ApiError: 408, it did not arrive in time.
        ClientGoneError: the client left before its end.
    """
    chunks: list[bytes] = []
    with trio.move_on_after(BODY_S_MAX):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client left before its request was complete")
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(chunks)
    raise ApiError(f"the body was not complete within {BODY_S_MAX:.0f} s", status=408, code="request_timeout")


async def wait_until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection; only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_unless_gone(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return what ``work`` returns; a client that leaves cancels it.

    Under hypercorn ``is_disconnected()`` never fires (pgjones/hypercorn#210) and nothing cancels a handler that
    does not stream: without this race the node would work for nobody.

    Raises:
        ClientGoneError: the client left first.
        NodeError: from ``work``.
    """

    async def gone() -> ClientGoneError:
        await wait_until_gone(receive)
        return ClientGoneError("the client left before its answer was ready")

    return await run_unless(gone, work, NodeError)


async def follow_unless_gone(receive: Receive, replaced: trio.Event, work: Callable[[], Awaitable[T]]) -> T:
    """Return what ``work`` returns, an answer without end; it ends with the token that opened it, too.

    Raises:
        ClientGoneError: the client left first, or has no token any more.
        NodeError: from ``work``.
    """

    async def signed_out() -> ClientGoneError:
        await replaced.wait()
        return ClientGoneError("the token of this client was replaced")

    return await run_unless(signed_out, lambda: run_unless_gone(receive, work), NodeError)
