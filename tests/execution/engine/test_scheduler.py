from hypothesis import given
from hypothesis import strategies as st

from node.execution.engine.pace import PrefillPace
from node.execution.engine.scheduler import REUSED_TOKENS_MIN, Move, Scheduler, Sequence
from protocol.task import Sampling


def new_scheduler(slots: int, prefill_tokens: int) -> Scheduler:
    return Scheduler(slots=slots, pace=PrefillPace(tokens_max=prefill_tokens))


def sequence(request: int, prompt_tokens: int = 4) -> Sequence:
    return prompt(request, [1] * prompt_tokens)


def prompt(request: int, tokens: list[int], scope: bytes = b"") -> Sequence:
    return Sequence(
        request=request,
        tokens=list(tokens),
        prompt_tokens=len(tokens),
        tokens_out_max=8,
        sampling=Sampling(),
        stop_tokens=frozenset(),
        scope=scope,
    )


def read(scheduler: Scheduler) -> dict[int, int]:
    """Plan one pass, note it as done, and return request -> prompt tokens read."""
    chunks = scheduler.plan().chunks
    for item, count in chunks:
        item.cached += count
    return {item.request: count for item, count in chunks}


def test_slots_go_to_those_who_wait_longest() -> None:
    scheduler = new_scheduler(2, 100)
    for request in range(4):
        scheduler.add(sequence(request))
    assert set(read(scheduler)) == {0, 1}
    scheduler.remove(0)
    assert set(read(scheduler)) == {2}


def test_long_prompt_does_not_hold_up_a_short_one() -> None:
    scheduler = new_scheduler(4, 32)
    scheduler.add(sequence(1, prompt_tokens=1000))
    scheduler.add(sequence(2, prompt_tokens=10))
    assert read(scheduler) == {2: 10, 1: 22}


def test_budget_is_shared_evenly_by_long_prompts() -> None:
    scheduler = new_scheduler(4, 32)
    scheduler.add(sequence(1, prompt_tokens=1))
    read(scheduler)
    scheduler.add(sequence(2, prompt_tokens=1000))
    scheduler.add(sequence(3, prompt_tokens=900))
    plan = scheduler.plan()
    assert [item.request for item in plan.decodes] == [1]
    assert {item.request: count for item, count in plan.chunks} == {2: 16, 3: 16}


def test_last_sequence_takes_over_the_slot_that_is_freed() -> None:
    scheduler = new_scheduler(3, 100)
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
    scheduler = new_scheduler(slots, budget)
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
            assert tokens <= budget + len(plan.decodes)
            assert all(0 < count <= item.prompt_tokens - item.cached for item, count in plan.chunks)
            # Something always moves on.
            assert tokens > 0 or scheduler.idle
            for item, count in plan.chunks:
                item.cached += count
        assert [item.slot for item in scheduler.running] == list(range(len(scheduler.running)))
        assert len(scheduler.running) <= slots


class Slots:
    """What the slots of a cache hold, by token: obeys the scheduler's moves."""

    def __init__(self, slots: int, prefill_tokens: int) -> None:
        self.scheduler = new_scheduler(slots, prefill_tokens)
        self.held: list[list[int]] = [[0] * 400 for _ in range(slots)]

    def obey(self, move: Move | None) -> None:
        if move:
            back = self.held[move.target][: move.back]
            self.held[move.target][: move.tokens] = self.held[move.source][: move.tokens]
            self.held[move.source][: move.back] = back

    def run_pass(self) -> None:
        """Every decoding sequence gets a token; whatever is not in its slot as it should be fails."""
        plan = self.scheduler.plan()
        for move in plan.moves:
            self.obey(move)
        for item in self.scheduler.running:
            assert self.held[item.slot][: item.cached] == item.tokens[: item.cached]
        for item, count in (*((item, 1) for item in plan.decodes), *plan.chunks):
            self.held[item.slot][item.cached : item.cached + count] = item.tokens[
                item.cached : item.cached + count
            ]
            item.cached += count
            if not item.prefilling:
                item.tokens.append(7)

    def answer(self, item: Sequence) -> int:
        """Run ``item`` alone to its first token, end it, and return how many of its tokens were found."""
        before = self.scheduler.reused_tokens
        self.scheduler.add(item)
        while item.prefilling:
            self.run_pass()
        self.obey(self.scheduler.remove(item.request))
        return self.scheduler.reused_tokens - before


TALK = list(range(100, 140))


def test_prompt_goes_on_from_what_its_customer_had_read_before() -> None:
    slots = Slots(2, 100)
    assert slots.answer(prompt(1, TALK, b"ann")) == 0
    # The prompt again: its last token is always read.
    assert slots.answer(prompt(2, TALK, b"ann")) == len(TALK) - 1
    # Question, answer and the next question.
    assert slots.answer(prompt(3, [*TALK, 7, 1, 2, 3], b"ann")) == len(TALK)


def test_prompt_is_read_anew_when_another_customer_or_nobody_had_sent_it() -> None:
    slots = Slots(4, 100)
    for request, scope in enumerate((b"ann", b"bob", b"", b"")):
        assert slots.answer(prompt(request, TALK, scope)) == 0


def test_few_tokens_in_common_are_not_worth_a_copy() -> None:
    slots = Slots(2, 100)
    slots.answer(prompt(1, TALK, b"ann"))
    assert slots.answer(prompt(2, [*TALK[: REUSED_TOKENS_MIN - 1], 1, 2, 3], b"ann")) == 0
    assert slots.answer(prompt(3, [*TALK[:REUSED_TOKENS_MIN], 1, 2, 3], b"ann")) == REUSED_TOKENS_MIN


def test_prompt_copies_what_a_running_answer_began_with() -> None:
    slots = Slots(3, 100)
    slots.scheduler.add(prompt(1, TALK, b"ann"))
    slots.run_pass()
    slots.scheduler.add(prompt(2, [*TALK[:30], 5, 6], b"ann"))
    slots.run_pass()
    assert slots.scheduler.reused_tokens == 30


def test_conversation_that_ended_last_is_the_last_to_be_forgotten() -> None:
    slots = Slots(3, 400)
    talks = {number: [number * 1000 + i for i in range(50)] for number in range(1, 5)}
    for number in (1, 2, 3):
        slots.answer(prompt(number, talks[number], b"ann"))
    slots.answer(prompt(4, talks[4], b"ann"))
    assert [slots.answer(prompt(10 + n, [*talks[n], 1], b"ann")) > 0 for n in (4, 3, 2)] == [True, True, True]
    assert slots.answer(prompt(20, [*talks[1], 1], b"ann")) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "pass", "pass", "remove"]), st.integers(1, 60), st.integers(0, 3)),
        max_size=80,
    ),
    st.integers(1, 5),
    st.integers(1, 60),
)
def test_slots_hold_their_sequences_tokens_whatever_is_reused_and_moved(
    actions: list[tuple[str, int, int]], slots: int, budget: int
) -> None:
    cache = Slots(slots, budget)
    added = 0
    for action, number, kind in actions:
        if action == "add":
            added += 1
            # Prompts that begin alike, for different lengths, of two customers and of nobody.
            tokens = [1000 + i for i in range(number)] + [kind] * 5
            cache.scheduler.add(prompt(added, tokens, (b"", b"ann", b"bob", b"ann")[kind]))
        elif action == "remove":
            cache.obey(cache.scheduler.remove(number % (added + 1)))
        else:
            cache.run_pass()
