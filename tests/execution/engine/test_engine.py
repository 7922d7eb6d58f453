import random
from typing import Any

import pytest
import torch

from node.execution.engine.engine import Engine
from node.execution.engine.llama import Llama
from node.execution.engine.scheduler import Sequence
from protocol.task import Sampling

EOS = frozenset({256})


def sequence(
    request: int, prompt: list[int], *, out: int = 20, sampling: Sampling | None = None, scope: bytes = b""
) -> Sequence:
    return Sequence(
        request=request,
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        tokens_out_max=out,
        sampling=sampling or Sampling(),
        stop_tokens=EOS,
        scope=scope,
    )


def engine(model: Llama, *, slots: int = 4, prefill_tokens: int = 64) -> Engine:
    return Engine(model, slots=slots, context_tokens=128, prefill_tokens=prefill_tokens)


def answer_alone(model: Llama, job: Sequence, *, prefill_tokens: int = 64) -> list[int]:
    lone = engine(model, prefill_tokens=prefill_tokens)
    lone.add(job)
    while not lone.idle:
        lone.step()
    return job.tokens[job.prompt_tokens :]


def jobs(count: int) -> list[Sequence]:
    """Prompts of many lengths; every other one is sampled."""
    source = random.Random(7)
    return [
        sequence(
            request,
            [source.randrange(256) for _ in range(source.randint(1, 60))],
            out=source.randint(1, 30),
            sampling=Sampling(temperature_milli=900 * (request % 2), top_p_milli=950, seed=request),
        )
        for request in range(count)
    ]


def test_answers_are_the_same_alone_and_in_a_batch_with_arrivals_and_a_cancellation(tiny: Llama) -> None:
    alone = {job.request: answer_alone(tiny, job) for job in jobs(16)}
    together = engine(tiny, slots=5, prefill_tokens=11)
    waiting, got = jobs(16), {job.request: list[int]() for job in jobs(16)}
    finished, steps = {}, 0
    while waiting or not together.idle:
        if waiting and steps % 2 == 0:
            together.add(waiting.pop(0))
        if steps == 9:
            together.cancel(2)
        for chosen in together.step():
            got[chosen.request].append(chosen.token)
            if chosen.finish:
                finished[chosen.request] = chosen.finish
        steps += 1
    assert set(finished) == set(alone) - {2}
    assert {request: got[request] for request in finished} == {request: alone[request] for request in finished}
    assert got[2] == alone[2][: len(got[2])]


@pytest.mark.parametrize("prefill_tokens", [1, 7, 64])
def test_answer_is_the_same_whatever_the_chunks_of_its_prompt(tiny: Llama, prefill_tokens: int) -> None:
    prompt = list(range(1, 60))
    whole = answer_alone(tiny, sequence(1, prompt), prefill_tokens=100)
    assert answer_alone(tiny, sequence(1, prompt), prefill_tokens=prefill_tokens) == whole


def test_cancelling_frees_the_slot_for_the_next(tiny: Llama) -> None:
    one_slot = engine(tiny, slots=1)
    one_slot.add(sequence(1, [1, 2, 3], out=100))
    one_slot.add(sequence(2, [4, 5], out=3))
    assert [chosen.request for chosen in one_slot.step()] == [1]
    one_slot.cancel(1)
    assert [chosen.request for chosen in one_slot.step()] == [2]
    one_slot.cancel(2)
    assert one_slot.idle
    one_slot.cancel(3)


def test_answer_ends_with_stop_at_a_stop_token_and_with_length_at_its_bound(tiny: Llama) -> None:
    tokens = answer_alone(tiny, sequence(1, [9, 8, 7], out=20))
    stopping = sequence(1, [9, 8, 7], out=20)
    stopping.stop_tokens = frozenset({tokens[4]})
    first = tokens.index(tokens[4])
    for job, length, finish in ((stopping, first + 1, "stop"), (sequence(1, [9, 8, 7], out=3), 3, "length")):
        running = engine(tiny)
        running.add(job)
        chosen = []
        while not running.idle:
            chosen += running.step()
        assert [item.finish for item in chosen] == [None] * (length - 1) + [finish]
        assert [item.token for item in chosen] == tokens[:length]


def test_engine_takes_nothing_that_does_not_fit_a_slot(tiny: Llama) -> None:
    with pytest.raises(AssertionError):
        engine(tiny).add(sequence(1, [1] * 120, out=9))


def test_idle_engine_steps_without_work(tiny: Llama) -> None:
    assert engine(tiny).step() == []


def talk(turns: int) -> list[tuple[int, list[int]]]:
    """Questions of two customers, each going on where its former question ended, in turns."""
    source = random.Random(3)
    openings = {customer: [source.randrange(256) for _ in range(24)] for customer in (0, 1)}
    return [
        (turn % 2, openings[turn % 2] + [source.randrange(256) for _ in range(2 * turn)]) for turn in range(turns)
    ]


def test_answers_are_the_same_whether_prefixes_are_reused_or_not(tiny: Llama) -> None:
    together = engine(tiny, slots=3, prefill_tokens=16)
    alone, got = {}, {}
    pending = []
    for request, (customer, prompt) in enumerate(talk(14)):
        sampling = Sampling(temperature_milli=700 * (request % 3 == 0), seed=request)
        alone[request] = answer_alone(tiny, sequence(request, prompt, sampling=sampling))
        job = sequence(request, prompt, sampling=sampling, scope=bytes([customer]))
        got[request] = job
        pending.append(job)
    steps = 0
    while pending or not together.idle:
        if pending and steps % 6 == 0:
            together.add(pending.pop(0))
        together.step()
        steps += 1
    assert {request: job.tokens[job.prompt_tokens :] for request, job in got.items()} == alone
    assert together.reused_tokens > 24 * 8


def test_running_answers_wait_no_longer_than_promised_while_a_long_prompt_is_read(
    tiny: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, gaps = 0.0, []
    forward = tiny.forward

    def slow_forward(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:  # Any: passed on as they come
        nonlocal now
        now += 0.03 + 0.002 * (len(tokens) - 1)
        return forward(tokens, *rest)

    monkeypatch.setattr("node.execution.engine.engine.perf_counter", lambda: now)
    monkeypatch.setattr(tiny, "forward", slow_forward)
    running = Engine(tiny, slots=3, context_tokens=512, prefill_tokens=256)
    running.add(sequence(1, [1, 2, 3], out=60))
    running.step()
    running.add(sequence(2, [7] * 450, out=1))
    while running.running:
        before = now
        if any(chosen.request == 1 for chosen in running.step()):
            gaps.append(now - before)
    assert len(gaps) == 59
    assert 0.1 < max(gaps) <= 0.2
