"""The numbers in a model's ``config.json`` that decide its size and its computation, without torch.

``read_shape`` is strict: it takes what the engine's own decoder (``engine/llama.py``) computes exactly, and
refuses the rest with the reason. ``read_decoder_shape`` takes any decoder; what is refused there runs on the
``transformers`` backend, for which only the sizes are read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from node.errors import ModelError

# What else calls itself Llama-like needs biases, norms or scalings that the engine lacks.
ARCHITECTURES: Final = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
_SIDE_MAX: Final = 1 << 20
# Their files keep a window that is not in use.
_IDLE_WINDOW: Final = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
# The other families leave out what is 10 000; these have other defaults, so they must say it.
_THETA_NEEDED: Final = ("mixtral", "qwen2_moe", "qwen3_moe")
_FIXED: Final[tuple[tuple[str, object], ...]] = (
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("clip_qkv", None),
    ("partial_rotary_factor", 1.0),
    ("quantization_config", None),
)

Backend = Literal["torch", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of any decoder: what a memory plan and the sampler need."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_tokens: int
    tied_embeddings: bool
    eos_tokens: frozenset[int]
    family: str = "llama"
    """``model_type`` of the configuration."""
    refused: str = ""
    """Why the engine's own decoder does not run it; empty when it does."""

    @property
    def backend(self) -> Backend:
        """Return what runs it."""
        return "transformers" if self.refused else "torch"

    @property
    def feed_forward_columns(self) -> int:
        """Numbers that one token needs at once inside a feed-forward layer."""
        return 3 * self.feed_forward


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape(DecoderShape):
    """A decoder of the Llama family, with what its variants add to it."""

    norm_epsilon: float
    rope_theta: float
    rope_scaling: "RopeScaling | None"
    qkv_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None
    """Query and key are normed: each head by itself (Qwen 3), or all heads as one vector (OLMoE)."""
    experts: "ExpertShape | None" = None

    @property
    def feed_forward_columns(self) -> int:
        """See ``DecoderShape``; a token stands once for each of its experts."""
        if self.experts is None:
            return 3 * self.feed_forward
        routed = self.experts.active * 3 * (self.hidden + self.experts.feed_forward)
        return routed + 3 * max(self.feed_forward, self.experts.shared_feed_forward)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """The mixture of experts that stands in place of most layers' feed-forward matrices."""

    count: int
    active: int
    """Experts that each token visits."""
    feed_forward: int
    normalised: bool
    """The weights of a token's experts are scaled to a sum of 1."""
    shared_feed_forward: int = 0
    """Width of an expert that every token visits besides; 0 when there is none."""
    dense_layers: frozenset[int] = frozenset()
    """Layers that keep plain matrices of the shape's own ``feed_forward``."""


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
        shape = _shape(_read_config(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"config.json: expected a Llama configuration, got {type(exc).__name__}: {exc}") from exc
    if shape.heads % shape.kv_heads or shape.head_size % 2:
        raise ModelError(
            f"config.json: expected heads in groups and an even head size, got {shape.heads} heads, "
            f"{shape.kv_heads} for keys, of size {shape.head_size}"
        )
    return shape


def read_decoder_shape(folder: Path) -> DecoderShape:
    """Return the shape of any decoder; one that the engine does not run itself has its reason in ``refused``.

    Raises:
        ModelError: there is no configuration, or it lacks the sizes that every decoder has.
    """
    try:
        return read_shape(folder)
    except ModelError as refused:
        try:
            return _sizes(_read_config(folder), str(refused))
        except (ModelError, OSError, ValueError, KeyError, TypeError, AttributeError):
            raise refused from None


def _read_config(folder: Path) -> dict[str, Any]:  # Any: parsed JSON, each use checks its type
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return config


def _shape(config: dict[str, Any]) -> LlamaShape:  # Any: parsed JSON
    family = config["model_type"]
    if family not in ARCHITECTURES:
        raise ModelError(f"config.json: expected {' or '.join(ARCHITECTURES)}, got {family!r}")
    _refuse_variants(config, family)
    heads = _side(config, "num_attention_heads")
    # Newer files keep theta and scaling together.
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta")
    if theta is None and family in _THETA_NEEDED:
        raise ModelError("config.json: expected rope_theta, got none")
    experts = _experts(config, family)
    return LlamaShape(
        family=family,
        layers=_side(config, "num_hidden_layers"),
        hidden=_side(config, "hidden_size"),
        feed_forward=_side(config, "intermediate_size"),
        heads=heads,
        kv_heads=_side(config, "num_key_value_heads", heads),
        head_size=_side(config, "head_dim", _side(config, "hidden_size") // heads),
        vocabulary=_side(config, "vocab_size"),
        context_tokens=_side(config, "max_position_embeddings"),
        norm_epsilon=float(config["rms_norm_eps"]),
        rope_theta=float(theta or 10_000.0),
        rope_scaling=_rope_scaling(rope or config.get("rope_scaling")),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        eos_tokens=_token_ids(config.get("eos_token_id")),
        # The configurations of Qwen 2 do not say it: their code has it.
        qkv_bias=family == "qwen2" or (family == "qwen2_moe" and config.get("qkv_bias", True) is True),
        qk_norm={"qwen3": "head", "qwen3_moe": "head", "olmoe": "whole"}.get(family),  # type: ignore[arg-type]
        experts=experts,
    )


def _refuse_variants(config: dict[str, Any], family: str) -> None:  # Any: parsed JSON
    for key, expected in _FIXED:
        if config.get(key, expected) != expected:
            raise ModelError(f"config.json: expected {key} {expected!r}, got {config[key]!r}")
    window = config.get("sliding_window")
    if family in _IDLE_WINDOW and not config.get("use_sliding_window", False):
        window = None
    if window is not None:
        raise ModelError(f"config.json: expected no sliding window, got {window}")
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise ModelError(f"config.json: expected full attention in every layer, got {', '.join(sorted(kinds))}")


def _experts(config: dict[str, Any], family: str) -> ExpertShape | None:  # Any: parsed JSON
    if family == "mixtral":
        return _checked(
            ExpertShape(
                count=_side(config, "num_local_experts"),
                active=_side(config, "num_experts_per_tok"),
                feed_forward=_side(config, "intermediate_size"),
                normalised=True,
            )
        )
    if family not in ("olmoe", "qwen2_moe", "qwen3_moe"):
        return None
    shared = family == "qwen2_moe"
    return _checked(
        ExpertShape(
            count=_side(config, "num_experts"),
            active=_side(config, "num_experts_per_tok"),
            feed_forward=_side(config, "intermediate_size" if family == "olmoe" else "moe_intermediate_size"),
            normalised=_flag(config, "norm_topk_prob"),
            shared_feed_forward=_side(config, "shared_expert_intermediate_size") if shared else 0,
            dense_layers=_dense_layers(config) if family != "olmoe" else frozenset(),
        )
    )


def _checked(experts: ExpertShape) -> ExpertShape:
    if experts.active > experts.count:
        raise ModelError(
            f"config.json: expected at most {experts.count} experts for each token, got {experts.active}"
        )
    return experts


def _dense_layers(config: dict[str, Any]) -> frozenset[int]:  # Any: parsed JSON
    """Return the layers without experts: those named, and all but every n-th."""
    step = _side(config, "decoder_sparse_step", 1)
    layers = range(_side(config, "num_hidden_layers"))
    named = frozenset(config.get("mlp_only_layers") or ())
    return frozenset(layer for layer in layers if layer in named or (layer + 1) % step)


def _sizes(config: dict[str, Any], refused: str) -> DecoderShape:  # Any: parsed JSON
    """Return the sizes under the names that configurations of other architectures have for them."""
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    return DecoderShape(
        family=str(config["model_type"]),
        layers=_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden=hidden,
        feed_forward=_first(
            config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden
        ),
        heads=heads,
        kv_heads=_first(config, "num_key_value_heads", "num_kv_heads", default=heads),
        head_size=_first(config, "head_dim", default=max(1, hidden // heads)),
        vocabulary=_first(config, "vocab_size"),
        context_tokens=_first(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        eos_tokens=_token_ids(config.get("eos_token_id")),
        refused=refused,
    )


def _first(config: dict[str, Any], *keys: str, default: int | None = None) -> int:  # Any: parsed JSON
    for key in keys:
        if config.get(key) is not None:
            return _side(config, key)
    return _side(config, keys[0], default)


def _flag(config: dict[str, Any], key: str) -> bool:  # Any: parsed JSON
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise ModelError(f"config.json: {key}: expected true or false, got {value!r}")
    return value


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
