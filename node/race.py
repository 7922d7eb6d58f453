"""Work done for somebody only while he stays. Who that is, and how he is seen to leave, is the caller's."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_unless(
    gone: Callable[[], Awaitable[Exception]], work: Callable[[], Awaitable[T]], *expected: type[Exception]
) -> T:
    """Return what ``work`` returns; once ``gone`` returns, ``work`` is cancelled and what it returned is raised.

    ``expected`` is what ``work`` may raise: it comes out bare, and not in a group.
    """
    results: list[T] = []
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            failures.append(await gone())
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            results.append(await work())
        except expected as exc:
            failures.append(exc)
        nursery.cancel_scope.cancel()
    # A result counts even where both came in the same moment: what it holds may have to be given back.
    if results:
        return results[0]
    raise failures[0]
