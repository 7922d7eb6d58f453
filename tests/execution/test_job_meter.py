import trio
import trio.testing

from node.execution.energy import EnergyBook
from node.execution.job_meter import JobMeter
from node.execution.measurements import Delivered


async def test_job_has_the_speed_after_its_first_token_and_its_energy(
    autojump_clock: trio.testing.MockClock,
) -> None:
    taken = [0]
    delivered = Delivered()
    meter = JobMeter(EnergyBook(lambda: taken[0]), delivered, tokens_in=100)
    await trio.sleep(5)
    meter.note(1)
    await trio.sleep(2)
    meter.note(10)
    taken[0] = 77
    assert meter.end() == 77
    assert delivered.tokens_per_s_milli == 5_000
    assert meter.end() is None
    assert delivered.tokens == 10


async def test_prompts_tokens_count_where_two_jobs_share(autojump_clock: trio.testing.MockClock) -> None:
    taken = [0]
    book = EnergyBook(lambda: taken[0])
    long, short = (JobMeter(book, Delivered(), tokens_in) for tokens_in in (89, 9))
    long.note(1)
    short.note(1)
    taken[0] = 1000
    assert (long.end(), short.end()) == (900, 100)
