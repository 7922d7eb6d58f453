import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file, save_file

from node.errors import ModelError
from node.models.gguf_convert import convert_gguf
from node.models.store import ModelStore
from tests.execution.tiny_model import SPECIAL, TEMPLATE, tokenizer

WIDTH, HEADS, KV_HEADS = 32, 4, 2
KINDS = [GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_1")]


def matrices() -> dict[str, Any]:  # Any: numpy arrays of many shapes
    noise = np.random.default_rng(1)
    found = {
        "token_embd.weight": (260, WIDTH),
        "blk.0.ffn_gate.weight": (64, WIDTH),
        "blk.0.ffn_up.weight": (64, WIDTH),
    }
    found |= {"blk.0.ffn_down.weight": (WIDTH, 64), "blk.0.attn_output.weight": (WIDTH, WIDTH)}
    found |= {
        "blk.0.attn_q.weight": (WIDTH, WIDTH),
        "blk.0.attn_k.weight": (16, WIDTH),
        "blk.0.attn_v.weight": (16, WIDTH),
    }
    return {name: noise.standard_normal(shape, dtype=np.float32) for name, shape in found.items()}


def write_gguf(
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    architecture: str = "llama",
    pre: str = "gpt-2",
    change: Callable[[GGUFWriter], None] = lambda _writer: None,
) -> Path:
    writer = GGUFWriter(str(path), architecture)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in SPECIAL else 1 for token, _ in vocabulary])
    writer.add_token_merges([])
    writer.add_eos_token_id(256)
    writer.add_chat_template(TEMPLATE)
    for name, weight in matrices().items():
        writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_weights_are_near_the_original_when_a_quantised_file_is_converted(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    model = ModelStore(tmp_path / "store").add_gguf(write_gguf(tmp_path / "tiny.gguf", kind))
    assert (model.name, model.about.source) == ("tiny", "gguf tiny.gguf")
    found = load_file(str(model.folder / "model.safetensors"))
    original = matrices()["blk.0.ffn_up.weight"]
    error = np.abs(found["model.layers.0.mlp.up_proj.weight"].astype(np.float32) - original).max()
    assert error < {"F32": 2e-3, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q5_1": 0.15}.get(kind.name, 0.4)
    config = json.loads((model.folder / "config.json").read_text())
    assert config["num_key_value_heads"] == KV_HEADS and config["head_dim"] == WIDTH // HEADS
    assert config["tie_word_embeddings"] is True and "bos_token_id" not in config


def test_weights_are_written_byte_for_byte_as_the_library_writes_them(tmp_path: Path) -> None:
    convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path)
    written = tmp_path / "model.safetensors"
    save_file(load_file(str(written)), str(tmp_path / "again"), metadata={"format": "pt"})
    assert written.read_bytes() == (tmp_path / "again").read_bytes()


def scaled(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_factor(4.0)


def expert(writer: GGUFWriter) -> None:
    writer.add_tensor("blk.0.ffn_gate_inp.weight", np.ones((4, WIDTH), dtype=np.float32))


def beyond(writer: GGUFWriter) -> None:
    writer.add_tensor("output.weight", np.full((260, WIDTH), 1e9, dtype=np.float32))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"architecture": "gemma"}, r"served here \(llama\), got 'gemma'"),
        ({"pre": "tekken"}, "got 'tekken'"),
        ({"change": scaled}, "plain rotary embedding"),
        ({"change": expert}, "not one of a dense Llama"),
        ({"change": beyond}, "numbers that float16 holds"),
    ],
)
def test_conversion_says_what_it_does_not_know_and_leaves_nothing(
    changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "store")
    with pytest.raises(ModelError, match=rf"^tiny\.gguf: .*{fault}"):
        store.add_gguf(write_gguf(tmp_path / "tiny.gguf", **changes))
    assert store.models() == () and [path.name for path in store.root.iterdir()] == [".lock"]


def test_conversion_refuses_a_file_without_what_the_configuration_needs(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"damaged, cut off or of an unknown version .KeyError"):
        convert_gguf(path, tmp_path)
