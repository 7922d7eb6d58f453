import json
from pathlib import Path

import pytest

from node.errors import ModelError
from node.execution.shape import RopeScaling, read_decoder_shape, read_shape
from tests.execution.tiny_model import config


def shape_of(folder: Path, **changes: object) -> object:
    merged = {key: value for key, value in (config() | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(merged))
    return read_shape(folder)


def test_shape_takes_defaults_of_files_that_leave_them_out(tmp_path: Path) -> None:
    shape_of(tmp_path, head_dim=..., num_key_value_heads=..., rope_theta=..., eos_token_id=[256, 258])
    shape = read_shape(tmp_path)
    assert (shape.head_size, shape.kv_heads, shape.rope_theta) == (8, 4, 10_000.0)
    assert shape.eos_tokens == {256, 258}
    assert shape.rope_scaling is None


def test_shape_reads_rope_settings_of_old_and_new_files(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    }
    expected = RopeScaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context_tokens=64
    )
    shape_of(tmp_path, rope_scaling=scaling)
    assert read_shape(tmp_path).rope_scaling == expected
    shape_of(tmp_path, rope_theta=..., rope_parameters=scaling | {"rope_theta": 5e5})
    assert read_shape(tmp_path).rope_scaling == expected
    assert read_shape(tmp_path).rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_type": "gpt2"}, "expected llama or mistral or"),
        ({"model_type": ...}, "KeyError"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 4096}, "sliding window"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"num_key_value_heads": 3}, "in groups"),
        ({"head_dim": 7}, "even head size"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rms_norm_eps": "x"}, "ValueError"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}, "sliding window"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3, "rope_theta": 1e6},
            "at most 2",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1, "rope_theta": ...},
            "rope_theta",
        ),
        (
            {"model_type": "olmoe", "num_experts": 2, "num_experts_per_tok": 1, "norm_topk_prob": 1},
            "norm_topk_prob",
        ),
        ({"model_type": "qwen3_moe", "num_experts": 2}, "num_experts_per_tok"),
    ],
)
def test_shape_is_refused_when_the_engine_would_compute_something_else(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: ") as refused:
        shape_of(tmp_path, **changes)
    assert fault in str(refused.value)


def test_layers_without_experts_are_those_named_and_those_between(tmp_path: Path) -> None:
    shape_of(
        tmp_path,
        model_type="qwen3_moe",
        num_hidden_layers=6,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    experts = read_shape(tmp_path).experts
    assert experts is not None and experts.dense_layers == {0, 2, 3, 4}
    # Two experts for each token, of three vectors as wide as the model and three as wide as an expert.
    assert read_shape(tmp_path).feed_forward_columns == 2 * 3 * (32 + 8) + 3 * 64


def test_any_decoder_has_a_shape_that_tells_why_the_engine_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 99}
        )
    )
    shape = read_decoder_shape(tmp_path)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_size) == (3, 48, 4, 4, 12)
    assert (shape.feed_forward, shape.vocabulary, shape.context_tokens) == (192, 99, 64)
    assert shape.backend == "transformers" and "got 'gpt2'" in shape.refused
    shape_of(tmp_path)
    assert read_decoder_shape(tmp_path).backend == "torch"
    (tmp_path / "config.json").write_text(json.dumps(config() | {"rope_scaling": {"rope_type": "yarn"}}))
    assert read_decoder_shape(tmp_path).backend == "transformers"


def test_model_that_is_no_decoder_has_no_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", "vocab_size": 9}))
    with pytest.raises(ModelError, match="got 'whisper'"):
        read_decoder_shape(tmp_path)


def test_shape_is_refused_when_there_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="FileNotFoundError"):
        read_shape(tmp_path)
