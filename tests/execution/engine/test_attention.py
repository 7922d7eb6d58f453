from hypothesis import given
from hypothesis import strategies as st

from node.execution.engine.attention import runs_of


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2000)), max_size=40), st.integers(0, 4000))
def test_runs_cover_the_slots_in_order_and_waste_little(steps: list[tuple[int, int]], call_tokens: int) -> None:
    slots, lengths, slot = [], [], 0
    for hole, length in steps:
        slot += hole
        slots.append(slot)
        lengths.append(length)
    runs = runs_of(slots, lengths, call_tokens=call_tokens)
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(slots)))
    for run in runs:
        assert slots[run] == list(range(slots[run][0], slots[run][0] + len(slots[run])))
        assert len(lengths[run]) * max(lengths[run]) - sum(lengths[run]) <= call_tokens


def test_long_answer_does_not_make_short_ones_read_as_much() -> None:
    assert runs_of([0, 1, 2, 3], [50, 60, 2000, 55], call_tokens=128) == [slice(0, 2), slice(2, 3), slice(3, 4)]


def test_answers_of_like_lengths_are_read_in_one_call() -> None:
    assert runs_of(list(range(8)), [50, 44, 51, 49, 40, 52, 45, 47], call_tokens=128) == [slice(0, 8)]
