"""A Llama of two layers and 260 tokens that tests write to disk: the code of a real one, in milliseconds."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT_TOKENS = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a test may want larger than tiny: caches that fill a device."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 8


def config(sizes: Sizes = Sizes()) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_size,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 260,
        "tie_word_embeddings": True,
        "eos_token_id": 256,
    }


def weights(seed: int, sizes: Sizes = Sizes()) -> dict[str, torch.Tensor]:
    q, kv = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    noise = torch.Generator().manual_seed(seed)

    def matrix(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=noise) * 0.3

    found = {"model.embed_tokens.weight": matrix(260, 32), "model.norm.weight": 1 + matrix(32)}
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}."
        found |= {
            f"{prefix}input_layernorm.weight": 1 + matrix(32),
            f"{prefix}post_attention_layernorm.weight": 1 + matrix(32),
            f"{prefix}self_attn.q_proj.weight": matrix(q, 32),
            f"{prefix}self_attn.k_proj.weight": matrix(kv, 32),
            f"{prefix}self_attn.v_proj.weight": matrix(kv, 32),
            f"{prefix}self_attn.o_proj.weight": matrix(32, q),
            f"{prefix}mlp.gate_proj.weight": matrix(64, 32),
            f"{prefix}mlp.up_proj.weight": matrix(64, 32),
            f"{prefix}mlp.down_proj.weight": matrix(32, 64),
        }
    return found


def tokenizer() -> Tokenizer:
    """One token for each byte, and the three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return made


def write_tiny_model(folder: Path, *, seed: int = 1, sizes: Sizes = Sizes()) -> Path:
    """Write the model's files into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(sizes)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"})
    )
    tokenizer().save(str(folder / "tokenizer.json"))
    save_file(weights(seed, sizes), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder
