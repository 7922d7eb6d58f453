"""Work that stops when the one it is done for leaves."""

import pytest
import trio
import trio.testing

from node.race import run_unless


class LeftError(Exception):
    pass


class BrokenError(Exception):
    pass


async def never() -> Exception:
    await trio.sleep_forever()
    raise AssertionError


async def at_once() -> Exception:
    return LeftError()


async def test_work_gives_its_result_while_nobody_leaves() -> None:
    async def work() -> int:
        return 7

    assert await run_unless(never, work) == 7


async def test_work_is_cancelled_when_the_other_leaves() -> None:
    stopped = False

    async def work() -> None:
        nonlocal stopped
        try:
            await trio.sleep_forever()
        finally:
            stopped = True

    with pytest.raises(LeftError):
        await run_unless(at_once, work)
    assert stopped


async def test_work_fails_bare_with_what_was_expected() -> None:
    async def work() -> None:
        raise BrokenError

    with pytest.raises(BrokenError):
        await run_unless(never, work, BrokenError)


async def test_result_counts_when_the_other_leaves_in_the_same_moment() -> None:
    async def work() -> int:
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        return 7

    assert await run_unless(at_once, work) == 7


async def test_work_is_cancelled_with_its_caller() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_unless(never, never)
    assert scope.cancelled_caught
