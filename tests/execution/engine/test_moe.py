import json
from pathlib import Path
from typing import Any

import pytest
import torch

from node.execution.engine.engine import Engine
from node.execution.engine.linears import PlainLinears
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.moe import ExpertLayer, StackedExperts
from node.execution.shape import read_shape
from tests.execution.engine.greedy import answers
from tests.execution.engine.test_llama import engine_logits
from tests.execution.tiny_families import FAMILIES, GOLDEN, GREEDY_TOKENS, PROMPT, write_family

CPU = torch.device("cpu")
EXPERTS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
GOLD: dict[str, Any] = json.loads(GOLDEN.read_bytes())  # Any: parsed JSON


def load(folder: Path, family: str) -> Llama:
    write_family(folder, family)
    return load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)


def greedy(model: Llama, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    engine = Engine(model, slots=len(prompts), context_tokens=64, prefill_tokens=10)
    return answers(engine, prompts, GREEDY_TOKENS)


@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_computes_what_transformers_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, plain: bool
) -> None:
    if plain:  # What CUDA runs: experts in two tensors and grouped products.
        monkeypatch.setattr("node.execution.engine.llama.pick_linears", lambda device, dtype: PlainLinears())
    model = load(tmp_path, family)
    expected = torch.tensor(GOLD[family]["logits"])
    torch.testing.assert_close(
        engine_logits(model, list(PROMPT), [len(PROMPT)])[-len(expected) :], expected, rtol=0, atol=1e-4
    )
    assert greedy(model, [PROMPT]) == [GOLD[family]["greedy"]]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_answer_of_experts_is_the_same_alone_and_in_a_batch(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    prompts = [tuple((token * step) % 64 for token in PROMPT) for step in (1, 3, 5, 7)]
    assert greedy(model, prompts) == [greedy(model, [prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("family", EXPERTS)
def test_tokens_visit_only_their_own_experts(tmp_path: Path, family: str) -> None:
    layer = load(tmp_path, family).layers[1].mlp
    assert isinstance(layer, ExpertLayer)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    weights, chosen = layer.route(x)
    assert chosen.shape == weights.shape == (5, layer.shape.active)
    assert all(len(set(row)) == layer.shape.active for row in chosen.tolist())
    sums = weights.sum(-1)
    assert torch.allclose(sums, torch.ones(5)) == layer.shape.normalised
    assert (sums <= 1 + 1e-6).all()


def test_stacked_experts_equal_packed_ones_when_some_have_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = load(tmp_path, "qwen2_moe").layers[0].mlp
    monkeypatch.setattr("node.execution.engine.llama.pick_linears", lambda device, dtype: PlainLinears())
    stacked = load(tmp_path, "qwen2_moe").layers[0].mlp
    assert isinstance(packed, ExpertLayer) and isinstance(stacked, ExpertLayer)
    assert isinstance(stacked.experts, StackedExperts)
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    residual = torch.zeros(1, 32)
    with torch.inference_mode():
        torch.testing.assert_close(packed.add_to(residual, x), stacked.add_to(residual, x), rtol=0, atol=1e-5)


def test_loading_is_refused_when_an_expert_is_missing(tmp_path: Path) -> None:
    write_family(tmp_path, "olmoe")
    config = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": 9}))
    with pytest.raises(ValueError, match=r"mlp\.gate\.weight: expected shape \(9, 32\), got \(8, 32\)"):
        load_llama(tmp_path, read_shape(tmp_path), device=CPU, dtype=torch.float32)
