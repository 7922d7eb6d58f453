import trio
import trio.testing

from node.execution.device_worker import Changes


async def test_change_wakes_everybody_who_waits_and_nobody_who_comes_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changes, woken = Changes(), []

    async def wait(name: str) -> None:
        await changes.wait()
        woken.append(name)

    with trio.move_on_after(1):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait, "early")
            await trio.testing.wait_all_tasks_blocked()
            changes.announce()
            waiting.start_soon(wait, "late")
    assert woken == ["early"]
