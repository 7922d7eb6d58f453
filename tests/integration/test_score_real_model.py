"""The margin of re-checked answers on the demo's chat model: honest, with fewer bits, and without a layer.

Thresholds come from one set of prompts and are tried on another. Providers and verifiers compute in one process,
on one thread, as workers of a shared machine do.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.execution.calibration import calibrate
from node.execution.engine.engine import Engine
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.score import LlamaReader, ScoreTask, Scoring, Verdict, mean_margin
from node.execution.engine.text import load_codec
from node.execution.engine.weights import open_weights
from node.execution.shape import read_shape
from node.models.import_demo import DEMO_MODEL
from node.models.store import ModelStore
from protocol.task import ChatMessage, Sampling

STORE = Path(sys.prefix) / "share" / "models"
CPU = torch.device("cpu")
TOKENS = 64
GREEDY = Sampling()
WARM = Sampling(temperature_milli=800, top_p_milli=950, seed=5)
PLACES = (
    "the sea",
    "a mill",
    "the moon",
    "bread",
    "glass",
    "a harbour",
    "snow",
    "wool",
    "copper",
    "tea",
    "maps",
    "bees",
)
ASKED = tuple(f"Explain in a few sentences what one should know about {place}." for place in PLACES)
# Of other kinds than those that thresholds come from.
OTHERS = (
    "Why do leaves change colour in autumn?", "Write a haiku about a train station.", "How is cheese made?",
    "Explain what a compiler does.", "List five rivers in Europe.",
    "What should I pack for a week in the mountains?", "Tell me a joke about penguins.",
    "How does a bicycle stay upright?", "Summarise the story of Robinson Crusoe.",
    "What is the difference between weather and climate?", "Give me a recipe for lentil soup.",
    "Who invented the printing press?",
)  # fmt: skip
FRESH = (
    *(f"Write the beginning of a short story in which somebody finds {place}." for place in PLACES),
    *OTHERS,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.deep, pytest.mark.real_model]

Figure = Callable[[str, str], None]


@dataclass(frozen=True)
class Answer:
    prompt: list[int]
    tokens: list[int]
    sampling: Sampling


class Bench:
    """Models of one folder, and what they answer."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._codec = folder, load_codec(folder)
        self.shape = read_shape(folder)

    def honest(self, dtype: torch.dtype) -> Llama:
        return load_llama(self._folder, self.shape, device=CPU, dtype=dtype)

    def changed(self, change: Callable[[str, Tensor], Tensor]) -> Llama:
        with open_weights(self._folder, device=CPU, dtype=torch.bfloat16) as weights, torch.inference_mode():
            made = lambda name, *shape: change(name, weights(name, *shape))  # noqa: E731  a Weights
            return Llama(self.shape, made, device=CPU, dtype=torch.bfloat16)

    def answers(self, model: Llama, questions: tuple[str, ...], sampling: Sampling, *, batch: int) -> list[Answer]:
        engine = Engine(model, slots=batch, context_tokens=256, prefill_tokens=128)
        jobs = [self._job(number, text, sampling) for number, text in enumerate(questions)]
        for job in jobs:
            engine.add(job)
        while not engine.idle:
            engine.step()
        return [Answer(job.tokens[: job.prompt_tokens], job.tokens[job.prompt_tokens :], sampling) for job in jobs]

    def _job(self, number: int, text: str, sampling: Sampling) -> Sequence:
        tokens = self._codec.encode((ChatMessage(role="user", content=text),), "")
        return Sequence(
            request=number,
            tokens=tokens,
            prompt_tokens=len(tokens),
            tokens_out_max=TOKENS,
            sampling=sampling,
            # All of one length, which thresholds are for.
            stop_tokens=frozenset(),
        )


def score(model: Llama, answer: Answer) -> Verdict:
    task = ScoreTask(request=0, prompt=answer.prompt, answer=answer.tokens, sampling=answer.sampling)
    check = Scoring(task=task, reader=LlamaReader(model, len(answer.prompt) + len(answer.tokens)))
    while not check.done:
        check.advance(128)
    return check.verdict()


def int4(name: str, weight: Tensor) -> Tensor:
    """Return ``weight`` as 16 levels in groups of 64 leave it; tables and norms are kept."""
    if "proj" not in name:
        return weight
    groups = weight.float().view(weight.shape[0], -1, 64)
    step = (groups.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-8)
    return ((groups / step).round().clamp(-8, 7) * step).view(weight.shape).to(weight.dtype)


def means(model: Llama, answers: list[Answer]) -> list[float]:
    return [mean_margin(score(model, answer).margins) for answer in answers]


@pytest.fixture(scope="module")
def bench() -> Bench:
    if not STORE.is_dir():
        pytest.skip("scripts/models has not imported the chat model")
    torch.set_num_threads(1)
    return Bench(ModelStore(STORE).find(DEMO_MODEL).folder)


def test_margins_catch_fewer_bits_and_a_dropped_layer_and_no_honest_answer(bench: Bench, figure: Figure) -> None:
    bf16, fp32 = bench.honest(torch.bfloat16), bench.honest(torch.float32)
    providers = ((bf16, 1), (bf16, 12), (fp32, 12))
    worst: dict[tuple[str, int], float] = {}
    margins: dict[tuple[str, int], list[float]] = {}
    for sampling in (GREEDY, WARM):
        for kind, questions in (("asked", ASKED), ("fresh", FRESH)):
            found = []
            for provider, batch in providers:
                answers = bench.answers(provider, questions, sampling, batch=batch)
                found += means(bf16, answers) + means(fp32, answers)
            key = (kind, sampling.temperature_milli)
            margins[key], worst[key] = found, max(found)
    limits = calibrate(margins["asked", 0], margins["asked", 800], answer_tokens=TOKENS)
    figure(
        "score, thresholds bf16",
        f"greedy {limits.greedy:.4f}, T 0.8 top-p 0.95 {limits.sampled:.4f} ({limits.answers} honest checks each)",
    )
    alarms = sum(it > limits.greedy for it in margins["fresh", 0]) + sum(
        it > limits.sampled for it in margins["fresh", 800]
    )
    figure(
        "score, false alarms on fresh prompts",
        f"{alarms} of {2 * len(margins['fresh', 0])}"
        f" (worst {worst['fresh', 0]:.4f} greedy, {worst['fresh', 800]:.4f} sampled)",
    )
    dropped = bench.honest(torch.bfloat16)
    dropped.layers.pop(15)
    caught = {}
    for name, cheat in (("int4", bench.changed(int4)), ("dropped layer", dropped)):
        for sampling, limit in ((GREEDY, limits.greedy), (WARM, limits.sampled)):
            found = means(bf16, bench.answers(cheat, FRESH, sampling, batch=12))
            caught[name, sampling.temperature_milli] = sum(it > limit for it in found)
            figure(
                f"score, {name}, T {sampling.temperature_milli / 1000}",
                f"{sum(it > limit for it in found)} of {len(found)} answers caught, one answer each;"
                f" smallest margin {min(found):.3f}",
            )
    assert alarms == 0
    assert set(caught.values()) == {len(FRESH)}


def test_scoring_costs_an_eighth_of_decoding(bench: Bench, figure: Figure) -> None:
    model = bench.honest(torch.bfloat16)
    for sampling, limit in ((GREEDY, 1 / 8), (WARM, 1 / 8)):
        decoded: list[float] = []
        scored: list[float] = []
        for question in ASKED[:5]:
            began = time.process_time()
            (answer,) = bench.answers(model, (question,), sampling, batch=1)
            middle = time.process_time()
            score(model, answer)
            decoded.append(middle - began)
            scored.append(time.process_time() - middle)
        share = sorted(s / d for s, d in zip(scored, decoded, strict=True))[2]
        figure(
            f"score, cost / decode at one sequence, T {sampling.temperature_milli / 1000}",
            f"1/{1 / share:.1f} (median of 5, CPU time; decode {1000 * sum(decoded) / 5 / TOKENS:.1f} ms a token)",
        )
        assert share <= limit
