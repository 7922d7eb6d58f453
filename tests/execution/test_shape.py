import json
from pathlib import Path

import pytest

from node.errors import ModelError
from node.execution.shape import RopeScaling, read_shape
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
        ({"model_type": "gpt2"}, "llama or mistral, got 'gpt2'"),
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
    ],
)
def test_shape_is_refused_when_the_engine_would_compute_something_else(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    with pytest.raises(ModelError, match=r"^config\.json: ") as refused:
        shape_of(tmp_path, **changes)
    assert fault in str(refused.value)


def test_shape_is_refused_when_there_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="FileNotFoundError"):
        read_shape(tmp_path)
