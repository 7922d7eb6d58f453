"""Greedy answers of the demo's chat model beside those of transformers, alone beside in a batch, and in bf16.

``tests/execution/golden/greedy.json`` has what transformers answered; ``scripts/golden_greedy`` made it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from node.execution.decode_library import compile_decode
from node.execution.engine.compiled_decode import CompiledDecode
from node.execution.engine.engine import Engine
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.text import TextCodec, load_codec
from node.execution.shape import read_shape
from node.models.import_demo import DEMO_MODEL
from node.models.store import ModelStore
from node.models.stored import StoredModel
from protocol.task import ChatMessage
from tests.execution.engine import greedy
from tests.integration.honest_margin import Answer, Referee, shortfalls

STORE = Path(sys.prefix) / "share" / "models"
GOLDEN = Path(__file__).parent.parent / "execution" / "golden" / "greedy.json"
CPU = torch.device("cpu")
BATCH = 16

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.real_model]

Figure = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One prompt, what transformers answers in fp32, and by how much each token led the second-best."""

    chat: bool
    text: str
    prompt: list[int]
    tokens: list[int]
    leads: list[float]


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    if not STORE.is_dir():
        pytest.skip("scripts/models has not imported the chat model")
    torch.set_num_threads(1)
    return ModelStore(STORE).find(DEMO_MODEL)


@pytest.fixture(scope="module")
def folder(stored: StoredModel) -> Path:
    return stored.folder


@pytest.fixture(scope="module")
def golden(stored: StoredModel) -> list[Golden]:
    found = json.loads(GOLDEN.read_bytes())
    made_of = {file.sha256.hex() for file in stored.manifest.files}
    assert found["weights_sha256"] in made_of, "other weights: run scripts/golden_greedy with this folder"
    return [Golden(**answer) for answer in found["answers"]]


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Llama:
    return load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)


def answers(
    model: Llama, prompts: Sequence[list[int]], count: int, *, batch: int, library: Path | None = None
) -> list[list[int]]:
    """Return ``count`` greedy tokens for each prompt, ``batch`` of them at a time as slots become free."""
    engine = Engine(model, slots=batch, context_tokens=512, prefill_tokens=128)
    if library is not None:
        engine.decode_by(partial(CompiledDecode, library))
    return greedy.answers(engine, prompts, count)


def equal_tokens(found: list[list[int]], golden: Sequence[Golden]) -> int:
    """Return how many tokens are equal before each answer's first difference."""
    pairs = [list(zip(tokens, it.tokens, strict=False)) for tokens, it in zip(found, golden, strict=True)]
    return sum(next((i for i, (a, b) in enumerate(pair) if a != b), len(pair)) for pair in pairs)


def encoded(codec: TextCodec, it: Golden) -> list[int]:
    return codec.encode([ChatMessage(role="user", content=it.text)] if it.chat else (), "" if it.chat else it.text)


def test_first_tokens_are_those_of_transformers_alone_and_together(fp32: Llama, golden: list[Golden]) -> None:
    # The shortest prompts: the gate is short.
    two, count = sorted(golden, key=lambda it: len(it.prompt))[:2], 24
    (alone,) = answers(fp32, [two[0].prompt], count, batch=1)
    together = answers(fp32, [it.prompt for it in two], count, batch=2)
    assert together == [it.tokens[:count] for it in two]
    assert alone == together[0]


def test_prompts_are_rendered_and_cut_as_by_transformers(folder: Path, golden: list[Golden]) -> None:
    codec = load_codec(folder)
    assert [encoded(codec, it) for it in golden] == [it.prompt for it in golden]


@pytest.mark.deep
def test_answers_are_those_of_transformers_alone_and_in_a_batch(
    fp32: Llama, golden: list[Golden], figure: Figure
) -> None:
    prompts, count = [it.prompt for it in golden], len(golden[0].tokens)
    alone = [answers(fp32, [prompt], count, batch=1)[0] for prompt in prompts]
    together = answers(fp32, prompts, count, batch=BATCH)
    tokens = len(golden) * count
    leads = sorted(lead for it in golden for lead in it.leads)
    figure(
        "greedy fp32, beside transformers",
        f"{equal_tokens(alone, golden)} of {tokens} tokens equal ({len(golden)} prompts x {count});"
        f" smallest lead of a best token {leads[0]:.5f}, {sum(lead < 0.01 for lead in leads)} below 0.01",
    )
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    figure("greedy fp32, alone beside a batch of 16", f"{same} of {len(golden)} answers identical")
    assert alone == [it.tokens for it in golden]
    assert together == alone


@pytest.mark.deep
def test_every_bf16_token_is_within_the_margin_of_other_prompts(
    folder: Path, golden: list[Golden], tmp_path: Path, figure: Figure
) -> None:
    referee = Referee(folder, torch.bfloat16)
    referee.load()
    model = load_llama(folder, read_shape(folder), device=CPU, dtype=torch.bfloat16)
    prompts, count = [it.prompt for it in golden], len(golden[0].tokens)
    alone = [answers(model, [prompt], count, batch=1)[0] for prompt in prompts]
    together = answers(model, prompts, count, batch=BATCH)
    plain = load_llama(folder, read_shape(folder), device=CPU, dtype=torch.bfloat16, plain_layers=True)
    compiled = answers(plain, prompts, count, batch=BATCH, library=compile_decode(tmp_path))
    calibrated, fresh = golden[::2], range(1, len(golden), 2)
    margin = referee.honest_margin(
        [Answer(prompt=it.prompt, tokens=tokens) for it, tokens in zip(calibrated, alone[::2], strict=True)]
    )
    short: dict[str, list[float]] = {"alone": [], "batch": [], "compiled": []}
    seconds = 0
    for number in fresh:
        for way, found in (("alone", alone), ("batch", together), ("compiled", compiled)):
            logits = referee.prefill(Answer(prompt=prompts[number], tokens=found[number]))
            short[way] += shortfalls(logits, found[number])
            best = logits.topk(2).values
            seconds += int(((best[:, 0] - best[:, 1]) > margin).sum())
    every = [*short["alone"], *short["batch"], *short["compiled"]]
    figure(
        "greedy bf16, honest margin",
        f"{margin:.3f} (logits; calibrated on {len(calibrated)} answers x {count} tokens)",
    )
    figure(
        "greedy bf16, answers of other prompts",
        f"{sum(it > margin for it in every)} of {len(every)} tokens outside the margin, alone, in a batch of"
        f" {BATCH}, and in one by the compiled step; furthest {max(every):.3f} behind the best,"
        f" {max(short['compiled']):.3f} by the compiled step; the second-best token would have been outside at"
        f" {seconds}",
    )
    same = sum(alone[number] == together[number] for number in range(len(golden)))
    figure("greedy bf16, alone beside a batch of 16", f"{same} of {len(golden)} answers identical")
    figure(
        "greedy bf16, beside transformers in fp32",
        f"{equal_tokens(alone, golden)} of {len(golden) * count} tokens equal before an answer's first difference,"
        f" {equal_tokens(compiled, golden)} by the compiled step",
    )
    assert max(every) <= margin
