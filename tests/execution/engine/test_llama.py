import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from node.execution.engine.attention import StepAttention
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.linears import PackedLinears, PlainLinears, pick_linears
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Plan, Sequence
from node.execution.shape import read_shape
from protocol.task import Sampling
from tests.execution.tiny_model import config, weights, write_tiny_model

CPU = torch.device("cpu")
TOKENS = [5, 80, 3, 250, 80, 80, 17, 99, 257, 1, 64]


def naive_logits(tensors: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """The whole forward pass with full attention, written from the paper's formulas, one head at a time."""
    settings = config()
    heads, kv_heads, size = 4, 2, 8

    def norm(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * tensors[name]

    def rotate(x: Tensor) -> Tensor:
        turned = x.clone()
        for position in range(len(x)):
            for i in range(size // 2):
                angle = position * float(str(settings["rope_theta"])) ** (-2 * i / size)
                a, b = x[position, i], x[position, i + size // 2]
                turned[position, i] = a * math.cos(angle) - b * math.sin(angle)
                turned[position, i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    x = tensors["model.embed_tokens.weight"][tokens]
    causal = torch.full((len(tokens), len(tokens)), -math.inf).triu(1)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        normed = norm(x, f"{prefix}input_layernorm.weight")
        q, k, v = (normed @ tensors[f"{prefix}self_attn.{part}_proj.weight"].T for part in "qkv")
        mixed = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            one = slice(head * size, (head + 1) * size)
            shared = slice(group * size, (group + 1) * size)
            scores = rotate(q[:, one]) @ rotate(k[:, shared]).T / math.sqrt(size) + causal
            mixed.append(scores.softmax(-1) @ v[:, shared])
        x = x + torch.cat(mixed, -1) @ tensors[f"{prefix}self_attn.o_proj.weight"].T
        normed = norm(x, f"{prefix}post_attention_layernorm.weight")
        gate = normed @ tensors[f"{prefix}mlp.gate_proj.weight"].T
        up = normed @ tensors[f"{prefix}mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ tensors[f"{prefix}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ tensors["model.embed_tokens.weight"].T


def engine_logits(model: Llama, tokens: list[int], chunks: list[int]) -> Tensor:
    cache = KvCache(model.shape, slots=3, context_tokens=64, dtype=model.dtype, device=CPU)
    sequence = Sequence(
        request=1,
        tokens=tokens,
        prompt_tokens=len(tokens),
        tokens_out_max=1,
        sampling=Sampling(),
        stop_tokens=frozenset(),
        slot=2,
    )
    rows = []
    with torch.inference_mode():
        for count in chunks:
            start = sequence.cached
            attention = StepAttention(Plan(decodes=(), chunks=((sequence, count),)), cache, CPU)
            positions = torch.arange(start, start + count)
            rows.append(model.forward(torch.tensor(tokens[start : start + count]), positions, attention.attend))
            sequence.cached += count
        return model.logits(torch.cat(rows))


@pytest.mark.parametrize("chunks", [[11], [1] * 11, [4, 7], [1, 9, 1]])
def test_forward_equals_the_naive_formulas_whatever_the_chunks(tiny: Llama, chunks: list[int]) -> None:
    torch.testing.assert_close(
        engine_logits(tiny, TOKENS, chunks), naive_logits(weights(1), TOKENS), rtol=1e-4, atol=1e-4
    )


def test_plain_products_equal_packed_ones(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a CPU without oneDNN, and CUDA, run.
    monkeypatch.setattr("node.execution.engine.llama.pick_linears", lambda device, dtype: PlainLinears())
    plain = load_llama(tiny_folder, read_shape(tiny_folder), device=CPU, dtype=torch.float32)
    torch.testing.assert_close(
        engine_logits(plain, TOKENS, [11]), naive_logits(weights(1), TOKENS), rtol=1e-4, atol=1e-4
    )


def test_products_are_plain_when_the_device_is_not_a_cpu() -> None:
    assert isinstance(pick_linears(torch.device("cuda", 0), torch.bfloat16), PlainLinears)
    assert isinstance(pick_linears(CPU, torch.float16), PlainLinears)
    assert isinstance(pick_linears(CPU, torch.float32), PackedLinears | PlainLinears)


def test_untied_head_is_used_when_the_model_has_one(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").write_text(json.dumps(config() | {"tie_word_embeddings": False}))
    tensors = weights(1)
    head = torch.randn(260, 32)
    save_file({**tensors, "lm_head.weight": head}, str(folder / "model.safetensors"))
    model = load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)
    tied = load_llama(
        write_tiny_model(tmp_path / "tied"), read_shape(tmp_path / "tied"), device=CPU, dtype=torch.float32
    )
    hidden = torch.randn(1, 32)
    with torch.inference_mode():
        assert not torch.allclose(model.logits(hidden), tied.logits(hidden))


def test_loading_is_refused_when_a_tensor_has_another_shape(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    wrong = weights(1) | {"model.layers.1.mlp.up_proj.weight": torch.zeros(63, 32)}
    save_file(wrong, str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=r"mlp\.up_proj\.weight: expected shape \(64, 32\), got \(63, 32\)"):
        load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)


def test_loading_is_refused_when_a_tensor_is_missing(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    tensors = weights(1)
    del tensors["model.norm.weight"]
    save_file(tensors, str(folder / "model.safetensors"))
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)


def test_loading_joins_weights_that_are_cut_into_parts(tmp_path: Path, tiny: Llama) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "model.safetensors").unlink()
    items = list(weights(1).items())
    save_file(dict(items[:9]), str(folder / "model-00001-of-00002.safetensors"))
    save_file(dict(items[9:]), str(folder / "model-00002-of-00002.safetensors"))
    model = load_llama(folder, read_shape(folder), device=CPU, dtype=torch.float32)
    assert torch.equal(engine_logits(model, TOKENS, [11]), engine_logits(tiny, TOKENS, [11]))


def test_rope_scaling_of_llama_3_slows_only_slow_rotations(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config() | {"rope_scaling": scaling}))
    plain = write_tiny_model(tmp_path / "plain")
    scaled_model, plain_model = (
        load_llama(path, read_shape(path), device=CPU, dtype=torch.float32) for path in (folder, plain)
    )
    angle = torch.asin(scaled_model.sin[1, 5:]) / torch.asin(plain_model.sin[1, 5:])
    # Turns in 64 tokens: 1.02 at the second frequency, 0.1 and 0.01 at the slower ones.
    torch.testing.assert_close(angle, torch.tensor([1 / 8, 1 / 8, 1 / 8]), rtol=0.06, atol=0)
    assert torch.equal(scaled_model.sin[:, :1], plain_model.sin[:, :1])
