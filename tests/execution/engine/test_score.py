from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from node.execution.engine.engine import Engine
from node.execution.engine.fingerprint import GROUP_BYTES, GROUP_TOKENS, Fingerprinter, distance, marks
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.score import (
    MARGIN_MAX,
    LlamaReader,
    Scores,
    ScoreTask,
    Scoring,
    Verdict,
    judge,
    mean_margin,
)
from node.execution.shape import read_shape
from protocol.task import Sampling
from tests.execution.tiny_model import write_tiny_model

PROMPT = [7, 99, 3, 250, 18, 42, 200, 5, 5, 61]
SAMPLED = Sampling(temperature_milli=900, top_p_milli=950, seed=11)
CPU = torch.device("cpu")


def generate(model: Llama, sampling: Sampling, *, count: int = 40) -> list[int]:
    engine = Engine(model, slots=1, context_tokens=128, prefill_tokens=64)
    job = Sequence(
        request=1,
        tokens=list(PROMPT),
        prompt_tokens=len(PROMPT),
        tokens_out_max=count,
        sampling=sampling,
        stop_tokens=frozenset(),
    )
    engine.add(job)
    while not engine.idle:
        engine.step()
    return job.tokens[len(PROMPT) :]


def scoring(model: Llama, task: ScoreTask) -> Scoring:
    return Scoring(task=task, reader=LlamaReader(model, len(task.prompt) + len(task.answer)))


def score(model: Llama, task: ScoreTask, *, piece: int = 1000) -> Verdict:
    check = scoring(model, task)
    while not check.done:
        check.advance(piece)
    return check.verdict()


def task(answer: list[int], sampling: Sampling, *, fingerprint: bytes = b"") -> ScoreTask:
    return ScoreTask(request=1, prompt=PROMPT, answer=answer, sampling=sampling, fingerprint=fingerprint)


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED, msgspec.structs.replace(SAMPLED, top_p_milli=1000)])
def test_honest_answer_has_no_margin_whatever_the_pieces(tiny: Llama, sampling: Sampling, piece: int) -> None:
    answer = generate(tiny, sampling)
    verdict = score(tiny, task(answer, sampling), piece=piece)
    assert len(verdict.margins) == len(verdict.logprobs) == 40
    assert max(verdict.margins) < 1e-3
    assert all(-50 < logprob <= 0 for logprob in verdict.logprobs)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_answer_of_other_weights_is_behind(tiny: Llama, tmp_path: Path, sampling: Sampling) -> None:
    other_folder = write_tiny_model(tmp_path, seed=2)
    other = load_llama(other_folder, read_shape(other_folder), device=CPU, dtype=torch.float32)
    verdict = score(tiny, task(generate(other, sampling), sampling))
    assert mean_margin(verdict.margins) > 0.5
    assert max(verdict.margins) <= MARGIN_MAX


def test_answer_of_a_model_without_its_last_layer_is_behind(tiny: Llama, tiny_folder: Path) -> None:
    short = load_llama(tiny_folder, read_shape(tiny_folder), device=CPU, dtype=torch.float32)
    short.layers.pop()
    assert mean_margin(score(tiny, task(generate(short, Sampling()), Sampling())).margins) > 0.3


def test_margin_tells_the_one_token_that_was_changed(tiny: Llama) -> None:
    answer = generate(tiny, SAMPLED)
    forged = [*answer[:20], (answer[20] + 1) % 256, *answer[21:]]
    margins = score(tiny, task(forged, SAMPLED)).margins
    assert max(margins[:20]) < 1e-3 < margins[20]


@pytest.mark.parametrize("change", [{"seed": 12}, {"temperature_milli": 400}, {"temperature_milli": 0}])
def test_other_sampling_than_agreed_shows_in_the_margin(tiny: Llama, change: dict[str, int]) -> None:
    answer = generate(tiny, msgspec.structs.replace(SAMPLED, temperature_milli=1500))
    agreed = Sampling(**{"temperature_milli": 1500, "top_p_milli": 950, "seed": 11, **change})
    assert mean_margin(score(tiny, task(answer, agreed)).margins) > 0.1


def test_answer_that_goes_on_is_judged_with_the_noise_of_its_own_positions(tiny: Llama) -> None:
    answer = generate(tiny, SAMPLED)
    rest = ScoreTask(
        request=1, prompt=PROMPT + answer[:15], answer=answer[15:], sampling=SAMPLED, first_position=15
    )
    assert max(score(tiny, rest).margins) < 1e-3
    assert mean_margin(score(tiny, replace(rest, first_position=0)).margins) > 0.1


def test_token_just_outside_the_nucleus_is_close_and_an_unlikely_one_far() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.28, 0.12, 0.0999, 0.0001]]))
    narrow = Sampling(temperature_milli=1000, top_p_milli=750, seed=3)
    far = judge(logits, [4], narrow, first_position=0)[0][0]
    # Of 0.78 mass before it: with the border 0.05 further out it is in.
    near = [
        judge(logits, [2], msgspec.structs.replace(narrow, seed=seed), first_position=0)[0][0]
        for seed in range(40)
    ]
    assert far == MARGIN_MAX or far > 3
    assert min(near) == 0.0


def test_checks_are_read_in_small_pieces_beside_jobs_and_one_after_the_other(tiny: Llama) -> None:
    answer = generate(tiny, Sampling())
    scores = Scores(new_reader=lambda tokens: LlamaReader(tiny, tokens), tokens_alone=1000, tokens_beside=8)
    for request in (1, 2, 3):
        scores.waiting.append(replace(task(answer, Sampling()), request=request))
    scores.cancel(2)
    steps = 0
    while (verdict := scores.step(alone=False)) is None:
        steps += 1
    assert (verdict.request, steps) == (1, (len(PROMPT) + len(answer) - 2) // 8)
    found = scores.step(alone=True)
    assert found is not None and found.request == 3
    assert scores.idle and scores.step(alone=True) is None


def test_fingerprint_is_the_same_whatever_the_pieces_and_far_from_other_weights(
    tiny: Llama, tmp_path: Path
) -> None:
    answer = generate(tiny, Sampling(), count=70)
    whole, pieces = score(tiny, task(answer, Sampling())), score(tiny, task(answer, Sampling()), piece=9)
    assert len(whole.fingerprint) == 2 * GROUP_BYTES == 1024
    claimed = task(answer, Sampling(), fingerprint=pieces.fingerprint)
    # bfloat16 values of float32 states.
    assert max(score(tiny, claimed).distances) < 0.01
    other_folder = write_tiny_model(tmp_path, seed=2)
    other = load_llama(other_folder, read_shape(other_folder), device=CPU, dtype=torch.float32)
    assert min(score(other, claimed).distances) > 0.5


@pytest.mark.parametrize("piece", [9, 1000])
def test_check_keeps_states_of_no_more_tokens_than_were_claimed(tiny: Llama, piece: int) -> None:
    answer = generate(tiny, Sampling(), count=70)
    claimed = score(tiny, task(answer, Sampling())).fingerprint[:GROUP_BYTES]
    check = scoring(tiny, task(answer, Sampling(), fingerprint=claimed))
    while not check.done:
        check.advance(piece)
    assert sum(len(it) for it in check._hidden) == GROUP_TOKENS
    (found,) = check.verdict().distances
    assert found < 0.01


def test_fingerprint_is_of_whole_groups_of_the_beginning() -> None:
    found = marks(torch.randn(100, 16, generator=torch.Generator().manual_seed(1)))
    whole, bounded = Fingerprinter(), Fingerprinter(GROUP_BYTES)
    for maker in (whole, bounded):
        for mark in found:
            maker.add([mark])
    assert whole.found() == b"".join(found[:96])
    assert bounded.found() == b"".join(found[:32])


def test_fingerprint_of_garbage_is_far_and_of_another_length_refused() -> None:
    hidden = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    maker = Fingerprinter()
    maker.add(marks(hidden))
    assert distance(maker.found(), hidden)[0] < 0.01
    assert distance(b"\xff" * GROUP_BYTES, hidden)[0] > 0.9
    assert distance(b"\x00" * GROUP_BYTES, hidden)[0] > 0.9
    for wrong in (maker.found() * 2, maker.found()[:-1]):
        with pytest.raises(ValueError, match="40 tokens"):
            distance(wrong, hidden)
