"""Turns a GGUF file of the Llama family into safetensors, a configuration and a tokenizer.

The result is the same bytes on every machine, so that everybody who converts one file gets one model id.
Needs numpy, gguf, safetensors and tokenizers, which are imported when a file is converted; no torch.
"""

import json
import math
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError
from node.models.manifest import WEIGHTS_NAME

ARCHITECTURES: Final = ("llama",)
_TOKEN_TYPE_CONTROL: Final = 3
_PRETOKENIZERS: Final = ("smollm", "gpt-2", "default")
_BYTES_OF_FLOAT16: Final = 2
_ROPE_THETA_DEFAULT: Final = 10_000.0

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

    The header of ``source`` was checked by ``gguf_check.py``. One tensor is in memory at a time.

    Raises:
        ModelError: another architecture, an unknown tokenizer or type of tensor, or a full disk.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(source))
        fields: Fields = {key: field.contents() for key, field in reader.fields.items()}
        _check(source.name, fields)
        _write_json(target / "config.json", _config(reader, fields))
        _write_tokenizer(fields, target)
        _write_weights(source.name, reader, fields, target / WEIGHTS_NAME)
    except ModelError:
        raise
    except OSError as exc:
        raise ModelError(f"{source.name}: cannot be read or written: {exc}") from exc
    # The reader indexes into a mapped file and raises whatever numpy or struct raise on damage.
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError, OverflowError) as exc:
        raise ModelError(
            f"{source.name}: expected a GGUF file of the Llama family, got one that is damaged, cut off or of an "
            f"unknown version ({type(exc).__name__}: {exc}); get it again and compare its checksum"
        ) from exc


def _check(name: str, fields: Fields) -> None:
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{name}: expected an architecture that is served here ({', '.join(ARCHITECTURES)}), "
            f"got {architecture!r}; import the model's safetensors instead"
        )
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise ModelError(
            f"{name}: expected a byte-level BPE tokenizer, got {fields.get('tokenizer.ggml.model')!r}; "
            f"import the model's safetensors instead, which come with their own tokenizer.json"
        )
    if fields.get("tokenizer.ggml.pre") not in _PRETOKENIZERS:
        raise ModelError(
            f"{name}: expected one of the pre-tokenizers {', '.join(_PRETOKENIZERS)}, "
            f"got {fields.get('tokenizer.ggml.pre')!r}; import the model's safetensors instead"
        )
    if scaled := [key for key in fields if key.startswith("llama.rope.scaling.")]:
        raise ModelError(
            f"{name}: expected plain rotary embedding, got {scaled[0]}; import its safetensors instead"
        )


def _write_weights(name: str, reader: Any, fields: Fields, path: Path) -> None:  # Any: gguf has no types
    """Write what ``safetensors.numpy.save_file`` would write, byte for byte, without holding all of it."""
    tensors = sorted(((_tensor_name(name, tensor.name), tensor) for tensor in reader.tensors), key=lambda t: t[0])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for called, tensor in tensors:
        # GGUF names the innermost side first.
        shape = [int(side) for side in reversed(tensor.shape)]
        end = at + _BYTES_OF_FLOAT16 * math.prod(shape)
        header[called] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for called, tensor in tensors:
            file.write(_weight(name, called, tensor, fields))


def _tensor_name(name: str, found: str) -> str:
    if found in _TOP:
        return _TOP[found]
    match found.split("."):
        case ["blk", layer, part, "weight"] if layer.isdecimal() and part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.weight"
        case _:
            raise ModelError(
                f"{name}: tensor {found[:64]!r} is not one of a dense Llama; import its safetensors instead"
            )


def _weight(name: str, called: str, tensor: Any, fields: Fields) -> bytes:  # Any: gguf has no types
    import numpy as np
    from gguf.quants import dequantize

    weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    for part in ("q", "k"):
        if called.endswith(f".{part}_proj.weight"):
            weight = _undo_rope_order(weight, fields, f"attn_{part}")
    with np.errstate(over="ignore"):  # told below, with the name of the tensor
        halves = np.ascontiguousarray(weight, dtype="<f2")
    if not np.isfinite(halves).all():
        raise ModelError(f"{name}: tensor {called!r}: expected numbers that float16 holds, got one beyond or none")
    return halves.tobytes()


def _undo_rope_order(weight: Any, fields: Fields, part: str) -> Any:  # Any: a numpy array of unknown shape
    """Return rows in the order of rotated halves; GGUF keeps the two of each rotated pair side by side."""
    key = "llama.attention.head_count" if part == "attn_q" else "llama.attention.head_count_kv"
    heads = fields[key]
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(reader: Any, fields: Fields) -> dict[str, object]:  # Any: gguf has no types
    heads = fields["llama.attention.head_count"]
    hidden = fields["llama.embedding_length"]
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.rope.dimension_count", hidden // heads),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get("llama.rope.freq_base", _ROPE_THETA_DEFAULT),
        "vocab_size": fields.get("llama.vocab_size", len(fields["tokenizer.ggml.tokens"])),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float16",
    }
    return _known(config)


def _write_tokenizer(fields: Fields, target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges", [])]
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
    role_ids = {role: fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "bos", "padding")}
    roles = {role: None if index is None else tokens[index] for role, index in role_ids.items()}
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": fields.get("tokenizer.chat_template"),
        "eos_token": roles["eos"],
        "bos_token": roles["bos"],
        "pad_token": roles["padding"],
        "model_max_length": fields["llama.context_length"],
    }
    _write_json(target / "tokenizer_config.json", _known(settings))


def _known(settings: dict[str, object]) -> dict[str, object]:
    """Return the settings that the file gave."""
    return {key: value for key, value in settings.items() if value is not None}


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
