"""Requests as they come in: bodies within their bounds, places in the queue, and clients that go away."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio
from starlette.types import Receive

from node.api.errors import ApiError, ClientGoneError
from node.errors import NodeError

BODY_S_MAX: Final = 30.0
QUEUE_RETRY_S: Final = 1

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
    results: list[T] = []
    failures: list[NodeError] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await wait_until_gone(receive)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            results.append(await work())
        except NodeError as exc:
            # Raised again outside: a nursery would wrap it in a group.
            failures.append(exc)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise ClientGoneError("the client left before its answer was ready")
    return results[0]
