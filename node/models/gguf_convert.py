"""Turns a GGUF file of the Llama family into safetensors, a configuration and a tokenizer.

The result is the same bytes on every machine, so that everybody who converts one file gets one model id.
Needs numpy, gguf, safetensors and tokenizers, which are imported when a file is converted; no torch.
"""

import json
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError

_MAGIC: Final = b"GGUF"
_TOKEN_TYPE_CONTROL: Final = 3
_PRETOKENIZERS: Final = ("smollm", "gpt-2", "default")

_TOP: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER: Final = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Fields = dict[str, Any]  # Any: GGUF metadata holds integers, floats, texts and lists; each use names its key


def convert_gguf(source: Path, target: Path) -> None:
    """Write ``model.safetensors`` (float16), ``config.json`` and the tokenizer's files into ``target``.

    Raises:
        ModelError: not GGUF, another architecture, or a tokenizer or tensor type that is not known here.
    """
    try:
        with source.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ModelError(f"{source.name}: cannot be read: {exc}") from exc
    if magic != _MAGIC:
        raise ModelError(f"{source.name}: expected GGUF, got a file that starts with {magic!r}")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(source))
        fields: Fields = {key: field.contents() for key, field in reader.fields.items()}
        _check(source.name, fields)
        _write_weights(reader, fields, target / "model.safetensors")
        _write_json(target / "config.json", _config(reader, fields))
        _write_tokenizer(fields, target)
    except ModelError:
        raise
    # The reader indexes into a mapped file and raises whatever numpy or struct raise on damage.
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError, OSError) as exc:
        raise ModelError(
            f"{source.name}: expected a GGUF file of the Llama family, got one that is damaged, cut off or of an "
            f"unknown version ({type(exc).__name__}); get it again and compare its checksum"
        ) from exc


def _check(name: str, fields: Fields) -> None:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{name}: expected architecture 'llama', got {architecture!r}")
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(
            f"{name}: expected a byte-level BPE tokenizer, got {fields.get('tokenizer.ggml.model')!r}"
        )
    if fields.get("tokenizer.ggml.pre") not in _PRETOKENIZERS:
        raise ModelError(
            f"{name}: expected one of the pre-tokenizers {', '.join(_PRETOKENIZERS)}, "
            f"got {fields.get('tokenizer.ggml.pre')!r}"
        )


def _write_weights(reader: Any, fields: Fields, path: Path) -> None:  # Any: gguf has no types
    import numpy as np
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in _TOP:
            name = _TOP[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER[part]}.weight"
            if part in ("attn_q", "attn_k"):
                weight = _undo_rope_order(weight, fields, part)
        weights[name] = np.ascontiguousarray(weight.astype(np.float16))
    save_file(weights, str(path), metadata={"format": "pt"})


def _undo_rope_order(weight: Any, fields: Fields, part: str) -> Any:  # Any: a numpy array of unknown shape
    """Return rows in the order of rotated halves; GGUF keeps the two of each rotated pair side by side."""
    key = "llama.attention.head_count" if part == "attn_q" else "llama.attention.head_count_kv"
    heads = fields[key]
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(reader: Any, fields: Fields) -> dict[str, object]:  # Any: gguf has no types
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float16",
    }


def _write_tokenizer(fields: Fields, target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]  # Any: the library's steps share no type
    if fields["tokenizer.ggml.pre"] == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind == _TOKEN_TYPE_CONTROL
    ]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": fields["tokenizer.chat_template"],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "model_max_length": fields["llama.context_length"],
    }
    _write_json(target / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
