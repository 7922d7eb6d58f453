import trio
import trio.testing

from node.execution.energy import EnergyBook
from node.execution.job_meter import JobMeter
from node.execution.measurements import Delivered
from node.execution.seats import Seats


def job(tokens_in: int = 10) -> JobMeter:
    return JobMeter(EnergyBook(lambda: 0), Delivered(), tokens_in)


async def test_job_that_waits_longest_gets_the_slot_when_one_is_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    waited: list[float] = []
    seats = Seats(2, waited.append)

    async def run(at_s: float, life_s: float) -> None:
        await trio.sleep(at_s)
        with seats.hold(job()):
            await trio.sleep(life_s)

    async with trio.open_nursery() as jobs:
        # Two slots: the third waits 7 s for the second's; the fourth leaves while it waits, the fifth as well.
        for at_s, life_s in ((0, 20), (1, 9), (3, 12), (4, 2), (10.5, 3)):
            jobs.start_soon(run, at_s, life_s)
    assert waited == [0, 0, 7]


async def test_last_slot_goes_to_the_next_in_line(autojump_clock: trio.testing.MockClock) -> None:
    waited: list[float] = []
    seats = Seats(1, waited.append)
    with seats.hold(job()):
        await trio.sleep(1)
        second = seats.hold(job())
        second.__enter__()
        await trio.sleep(1)
        third = seats.hold(job())
        third.__enter__()
        await trio.sleep(2)
    await trio.sleep(4)
    second.__exit__(None, None, None)
    third.__exit__(None, None, None)
    assert waited == [0, 3, 6]


async def test_prompt_counts_as_held_once_it_was_read(autojump_clock: trio.testing.MockClock) -> None:
    seats, first, second = Seats(2, lambda _waited_s: None), job(100), job(5)
    with seats.hold(first):
        assert seats.tokens_held == 0
        first.note(1)
        with seats.hold(second):
            second.note(2)
            first.note(1)
            assert seats.tokens_held == 102 + 7
        assert seats.tokens_held == 102
    assert seats.tokens_held == 0
