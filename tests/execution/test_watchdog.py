import math
import os

import pytest

from node.execution.watchdog import HANG_S_MIN, Patience, resident_bytes

SILENCE_S = 60.0


def answering(step_s: float, steps: int = 20) -> tuple[Patience, float]:
    """A worker that answers request 1, one step every ``step_s``; return it with the time of its last step."""
    patience = Patience(SILENCE_S)
    patience.asked(1, "prompt", 0.0)
    patience.began(1)
    for number in range(1, steps + 1):
        patience.stepped(number * step_s)
    return patience, steps * step_s


def test_worker_that_owes_nothing_may_be_silent_for_ever() -> None:
    patience = Patience(SILENCE_S)
    assert patience.ends_at() == math.inf and not patience.owes
    patience.asked(1, "reading", 5.0)
    patience.read(1, 6.0)
    # Held: its peer has not signed yet.
    assert patience.ends_at() == math.inf and not patience.owes
    patience.over(1)
    assert patience.ends_at() == math.inf


@pytest.mark.parametrize(("step_s", "allowed_s"), [(0.01, HANG_S_MIN), (1.0, 10.0), (20.0, SILENCE_S)])
def test_engine_may_take_ten_times_its_slowest_pass_within_bounds(step_s: float, allowed_s: float) -> None:
    patience, now = answering(step_s)
    assert patience.ends_at() == pytest.approx(now + allowed_s)


def test_engine_may_take_all_the_time_there_is_when_nothing_was_measured() -> None:
    patience = Patience(SILENCE_S)
    patience.asked(1, "prompt", 100.0)
    assert patience.ends_at() == 160.0


def test_answers_of_the_reader_hide_no_engine_that_hangs() -> None:
    patience, now = answering(0.01)
    patience.asked(2, "reading", now + 3.0)
    patience.read(2, now + 4.0)
    patience.asked(3, "reading", now + 4.5)
    patience.failed(3, now + 4.6)
    patience.over(3)
    patience.asked(2, "prompt", now + 4.7)
    # A prompt takes longer than a token, and no prompt was measured before; the sign of life is still the old one.
    patience.over(2)
    assert patience.ends_at() == pytest.approx(now + HANG_S_MIN)


def test_steps_of_the_engine_hide_no_reader_that_hangs() -> None:
    patience, now = answering(0.01)
    patience.asked(2, "reading", now)
    for number in range(1000):
        patience.stepped(now + number * 0.1)
    assert patience.ends_at() == now + SILENCE_S


def test_slow_prompts_do_not_make_tokens_slow() -> None:
    patience = Patience(SILENCE_S)
    patience.asked(1, "prompt", 0.0)
    patience.stepped(2.0)
    patience.began(1)
    patience.stepped(2.01)
    assert patience.ends_at() == pytest.approx(2.01 + HANG_S_MIN)
    patience.asked(2, "prompt", 2.01)
    assert patience.ends_at() == pytest.approx(2.01 + 20.0)


def test_engine_that_was_idle_is_measured_from_the_next_job_on() -> None:
    patience, now = answering(0.01)
    patience.over(1)
    patience.asked(2, "task", now + 1000.0, silence_s_max=600.0)
    assert patience.ends_at() == now + 1600.0
    patience.worked(now + 1100.0)
    patience.over(2)
    assert patience.ends_at() == math.inf


def test_memory_of_a_process_is_told_without_what_it_shares_with_files() -> None:
    before = resident_bytes(os.getpid())
    held = bytearray(b"x") * (32 << 20)
    after = resident_bytes(os.getpid())
    assert before is not None and after is not None and len(held) == 32 << 20
    assert 30 << 20 <= after - before <= 48 << 20
    assert resident_bytes(2**22 + 1) is None
