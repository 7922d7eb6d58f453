import random
import statistics
from collections.abc import Callable

import pytest

from node.execution.engine.pace import TOKENS_MIN, PrefillPace

CHATS = 8


def read_prompt(pace: PrefillPace, pass_s: Callable[[int, int], float], tokens: int = 2000) -> list[float]:
    """Read one prompt beside eight chats and return how long each pass took; ``pass_s`` is told what was read."""
    for _ in range(10):
        pace.note(CHATS, 0, pass_s(0, 0))
    gaps, read = [], 0
    while read < tokens:
        count = min(pace.budget(CHATS), tokens - read)
        gaps.append(pass_s(read, count))
        pace.note(CHATS, count, gaps[-1])
        read += count
    return gaps


@pytest.mark.parametrize("token_s", [0.00002, 0.0004, 0.0016, 0.004])
def test_gaps_keep_the_promise_when_a_long_prompt_arrives(token_s: float) -> None:
    # Tokens at the end of the prompt cost half as much again, and the machine is not quiet.
    noise = random.Random(4)

    def pass_s(read: int, count: int) -> float:
        return (0.035 + count * token_s * (1 + read / 4000)) * noise.uniform(0.9, 1.15)

    gaps = read_prompt(PrefillPace(tokens_max=2048, inter_token_s=0.2), pass_s)
    assert max(gaps) <= 0.2
    if len(gaps) > 12:
        # What the promise leaves is used: chunks that are too small cost everybody.
        assert statistics.median(gaps) > 0.1


def test_one_slow_pass_does_not_starve_the_prompt() -> None:
    passes = 0

    def pass_s(read: int, count: int) -> float:
        nonlocal passes
        passes += 1
        return (0.035 + count * 0.0016) * (8 if passes % 5 == 0 else 1)

    assert len(read_prompt(PrefillPace(tokens_max=2048), pass_s)) < 45


def test_machine_slower_than_the_promise_still_reads_prompts() -> None:
    gaps = read_prompt(PrefillPace(tokens_max=2048), lambda read, count: 0.5 + 0.05 * count, 160)
    assert len(gaps) == pytest.approx(160 / TOKENS_MIN, abs=3)


def test_pass_takes_all_it_may_while_no_answer_runs() -> None:
    assert PrefillPace(tokens_max=512).budget(0) == 512


def test_first_chunk_beside_answers_is_small_and_the_next_at_most_twice_as_large() -> None:
    pace = PrefillPace(tokens_max=2048)
    first = pace.budget(3)
    assert first <= 64
    pace.note(3, first, 0.0001)
    assert pace.budget(3) == 2 * first
    # The few tokens at the end of a prompt say nothing of the next one's.
    pace.note(3, 3, 0.1)
    assert pace.budget(3) == 2 * first


def test_promise_decides_the_size_of_chunks() -> None:
    def chunk(inter_token_s: float) -> int:
        pace = PrefillPace(tokens_max=2048, inter_token_s=inter_token_s)
        read_prompt(pace, lambda read, count: 0.03 + 0.001 * count, 400)
        pace.note(CHATS, 200, 0.23)
        return pace.budget(CHATS)

    # Six tenths of the promise, less what the decodes take.
    assert chunk(0.1) == pytest.approx(30, abs=1)
    assert chunk(0.4) == pytest.approx(210, abs=1)
