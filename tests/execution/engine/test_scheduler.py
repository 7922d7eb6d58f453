from hypothesis import given
from hypothesis import strategies as st

from node.execution.engine.scheduler import Move, Scheduler, Sequence
from protocol.task import Sampling


def sequence(request: int, prompt_tokens: int = 4) -> Sequence:
    return Sequence(
        request=request,
        tokens=[1] * prompt_tokens,
        prompt_tokens=prompt_tokens,
        tokens_out_max=8,
        sampling=Sampling(),
        stop_tokens=frozenset(),
    )


def read(scheduler: Scheduler) -> dict[int, int]:
    """Plan one pass, note it as done, and return request -> prompt tokens read."""
    chunks = scheduler.plan().chunks
    for item, count in chunks:
        item.cached += count
    return {item.request: count for item, count in chunks}


def test_slots_go_to_those_who_wait_longest() -> None:
    scheduler = Scheduler(slots=2, prefill_tokens=100)
    for request in range(4):
        scheduler.add(sequence(request))
    assert set(read(scheduler)) == {0, 1}
    scheduler.remove(0)
    assert set(read(scheduler)) == {2}


def test_long_prompt_does_not_hold_up_a_short_one() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=32)
    scheduler.add(sequence(1, prompt_tokens=1000))
    scheduler.add(sequence(2, prompt_tokens=10))
    assert read(scheduler) == {2: 10, 1: 22}


def test_budget_is_shared_evenly_by_long_prompts_and_reduced_by_decodes() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=32)
    scheduler.add(sequence(1, prompt_tokens=1))
    read(scheduler)
    scheduler.add(sequence(2, prompt_tokens=1000))
    scheduler.add(sequence(3, prompt_tokens=900))
    plan = scheduler.plan()
    assert [item.request for item in plan.decodes] == [1]
    assert {item.request: count for item, count in plan.chunks} == {2: 15, 3: 16}


def test_prompts_go_on_when_decodes_fill_the_budget() -> None:
    scheduler = Scheduler(slots=4, prefill_tokens=2)
    for request in (1, 2, 3):
        scheduler.add(sequence(request, prompt_tokens=1))
    for _ in range(3):
        read(scheduler)
    scheduler.add(sequence(4, prompt_tokens=5))
    assert read(scheduler) == {4: 1}


def test_last_sequence_takes_over_the_slot_that_is_freed() -> None:
    scheduler = Scheduler(slots=3, prefill_tokens=100)
    for request in range(3):
        scheduler.add(sequence(request, prompt_tokens=4 + request))
    read(scheduler)
    assert scheduler.remove(0) == Move(source=2, target=0, tokens=6)
    assert [(item.request, item.slot) for item in scheduler.running] == [(2, 0), (1, 1)]
    assert scheduler.remove(1) is None
    assert scheduler.remove(99) is None


@given(
    st.lists(st.tuples(st.sampled_from(["add", "pass", "remove"]), st.integers(1, 60)), max_size=60),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_running_sequences_fill_the_lowest_slots_and_no_pass_exceeds_the_budget(
    actions: list[tuple[str, int]], slots: int, budget: int
) -> None:
    scheduler = Scheduler(slots=slots, prefill_tokens=budget)
    added = 0
    for action, number in actions:
        if action == "add":
            added += 1
            scheduler.add(sequence(added, prompt_tokens=number))
        elif action == "remove":
            scheduler.remove(number % (added + 1))
        else:
            plan = scheduler.plan()
            tokens = len(plan.decodes) + sum(count for _, count in plan.chunks)
            assert tokens <= max(budget, len(plan.decodes) + 1)
            assert all(0 < count <= item.prompt_tokens - item.cached for item, count in plan.chunks)
            # Something always moves on.
            assert tokens > 0 or scheduler.idle
            for item, count in plan.chunks:
                item.cached += count
        assert [item.slot for item in scheduler.running] == list(range(len(scheduler.running)))
        assert len(scheduler.running) <= slots
