"""Tiny random models of every family that the engine runs: two layers, 64 tokens, the names of real checkpoints.

``golden/families.json`` has what ``transformers`` computes with them; ``scripts/golden_logits`` made it.
"""

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

GOLDEN: Final = Path(__file__).parent / "golden" / "families.json"
PROMPT: Final = (5, 60, 3, 50, 17, 17, 1, 44, 9, 22, 31, 63)
GREEDY_TOKENS: Final = 24

_HIDDEN, _HEADS, _KV_HEADS, _SIZE, _WIDE, _VOCABULARY = 32, 4, 2, 8, 48, 64
_SETTINGS: Final[dict[str, object]] = {
    "hidden_size": _HIDDEN,
    "intermediate_size": _WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _SIZE,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "vocab_size": _VOCABULARY,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_LLAMA_3: Final = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_EXPERTS: Final[dict[str, object]] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}

FAMILIES: Final[dict[str, dict[str, object]]] = {
    "llama": {"model_type": "llama", "rope_scaling": _LLAMA_3},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64},
    "qwen3": {"model_type": "qwen3", "attention_bias": False, "tie_word_embeddings": True},
    "mixtral": {
        "model_type": "mixtral",
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "olmoe": {
        "model_type": "olmoe",
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "clip_qkv": None,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **_EXPERTS,
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_EXPERTS,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "attention_bias": False,
    },
}


def write_family(folder: Path, family: str) -> Path:
    """Write the family's ``config.json`` and weights into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_SETTINGS | FAMILIES[family]))
    save_file(_weights(family), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _weights(family: str) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(len(family))
    found: dict[str, torch.Tensor] = {}

    def add(name: str, *size: int) -> None:
        mean = 1.0 if "norm" in name else 0.0
        found[name] = mean + 0.3 * torch.randn(*size, generator=noise)

    add("model.embed_tokens.weight", _VOCABULARY, _HIDDEN)
    add("model.norm.weight", _HIDDEN)
    if not FAMILIES[family].get("tie_word_embeddings"):
        add("lm_head.weight", _VOCABULARY, _HIDDEN)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        add(f"{prefix}input_layernorm.weight", _HIDDEN)
        add(f"{prefix}post_attention_layernorm.weight", _HIDDEN)
        for part, heads in (("q", _HEADS), ("k", _KV_HEADS), ("v", _KV_HEADS)):
            add(f"{prefix}self_attn.{part}_proj.weight", heads * _SIZE, _HIDDEN)
            if family in ("qwen2", "qwen2_moe"):
                add(f"{prefix}self_attn.{part}_proj.bias", heads * _SIZE)
        add(f"{prefix}self_attn.o_proj.weight", _HIDDEN, _HEADS * _SIZE)
        for part, heads in (("q", _HEADS), ("k", _KV_HEADS)):
            if family in ("qwen3", "qwen3_moe"):
                add(f"{prefix}self_attn.{part}_norm.weight", _SIZE)
            if family == "olmoe":
                add(f"{prefix}self_attn.{part}_norm.weight", heads * _SIZE)
        for name, size in _feed_forward(family, layer).items():
            add(f"{prefix}{name}.weight", *size)
    return found


def _feed_forward(family: str, layer: int) -> dict[str, tuple[int, int]]:
    if family == "mixtral":
        found = {"block_sparse_moe.gate": (6, _HIDDEN)}
        for expert in range(6):
            found |= _gated(f"block_sparse_moe.experts.{expert}.", _WIDE, ("w1", "w3", "w2"))
        return found
    if family not in ("olmoe", "qwen2_moe", "qwen3_moe") or (family == "qwen3_moe" and layer == 0):
        return _gated("mlp.", _WIDE)
    found = {"mlp.gate": (8, _HIDDEN)}
    for expert in range(8):
        found |= _gated(f"mlp.experts.{expert}.", _WIDE if family == "olmoe" else 16)
    if family == "qwen2_moe":
        found |= _gated("mlp.shared_expert.", 24) | {"mlp.shared_expert_gate": (1, _HIDDEN)}
    return found


def _gated(
    prefix: str, wide: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> dict[str, tuple[int, int]]:
    gate, up, down = (f"{prefix}{name}" for name in names)
    return {gate: (wide, _HIDDEN), up: (wide, _HIDDEN), down: (_HIDDEN, wide)}
