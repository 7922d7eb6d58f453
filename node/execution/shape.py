"""The numbers in a model's ``config.json`` that decide its size and its computation, without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError

# Both compute the same thing; what else calls itself Llama-like needs biases or norms that the engine lacks.
ARCHITECTURES: Final = ("llama", "mistral")
_SIDE_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a decoder of the Llama family."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: "RopeScaling | None"
    tied_embeddings: bool
    eos_tokens: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of slow rotations."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


def read_shape(folder: Path) -> LlamaShape:
    """Return the shape of the model in ``folder``.

    Raises:
        ModelError: the configuration is not of an architecture that the engine runs, or contradicts itself.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())  # Any: each use checks its type
        shape = _shape(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"config.json: expected a Llama configuration, got {type(exc).__name__}: {exc}") from exc
    if shape.heads % shape.kv_heads or shape.head_size % 2:
        raise ModelError(
            f"config.json: expected heads in groups and an even head size, got {shape.heads} heads, "
            f"{shape.kv_heads} for keys, of size {shape.head_size}"
        )
    return shape


def _shape(config: dict[str, Any]) -> LlamaShape:  # Any: parsed JSON
    if config["model_type"] not in ARCHITECTURES:
        raise ModelError(f"config.json: expected {' or '.join(ARCHITECTURES)}, got {config['model_type']!r}")
    for key, expected in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(key, expected) != expected:
            raise ModelError(f"config.json: expected {key} {expected!r}, got {config[key]!r}")
    if (window := config.get("sliding_window")) is not None:
        raise ModelError(f"config.json: expected no sliding window, got {window}")
    heads = _side(config, "num_attention_heads")
    # Newer files keep theta and scaling together.
    rope = config.get("rope_parameters") or {}
    return LlamaShape(
        layers=_side(config, "num_hidden_layers"),
        hidden=_side(config, "hidden_size"),
        feed_forward=_side(config, "intermediate_size"),
        heads=heads,
        kv_heads=_side(config, "num_key_value_heads", heads),
        head_size=_side(config, "head_dim", _side(config, "hidden_size") // heads),
        vocabulary=_side(config, "vocab_size"),
        context_tokens=_side(config, "max_position_embeddings"),
        norm_epsilon=float(config["rms_norm_eps"]),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(rope or config.get("rope_scaling")),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        eos_tokens=_token_ids(config.get("eos_token_id")),
    )


def _side(config: dict[str, Any], key: str, default: int | None = None) -> int:  # Any: parsed JSON
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= _SIDE_MAX:
        raise ModelError(f"config.json: {key}: expected 1 to {_SIDE_MAX}, got {value!r}")
    return value


def _rope_scaling(value: dict[str, Any] | None) -> RopeScaling | None:  # Any: parsed JSON
    kind = (value or {}).get("rope_type") or (value or {}).get("type")
    if value is None or kind in (None, "default"):
        return None
    if kind != "llama3":
        raise ModelError(f"config.json: expected rope scaling 'llama3' or none, got {kind!r}")
    return RopeScaling(
        factor=float(value["factor"]),
        low_frequency_factor=float(value["low_freq_factor"]),
        high_frequency_factor=float(value["high_freq_factor"]),
        original_context_tokens=int(value["original_max_position_embeddings"]),
    )


def _token_ids(value: object) -> frozenset[int]:
    if value is None:
        return frozenset()
    ids = value if isinstance(value, list) else [value]
    return frozenset(token for token in ids if type(token) is int)
