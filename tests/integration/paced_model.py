"""A Llama that tests write to disk: one printable character a token, some milliseconds each, no end of its own.

So an answer's text tells its tokens one by one, and it takes long enough to be cut in the middle; a daemon that
serves it starts in half the time that the chat model takes. Its weights are scaled so that the next token depends
on all before it: a token lost, doubled or out of place changes the rest.
"""

import json
import string
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from node.models.store import ModelStore
from tests.execution.tiny_model import SPECIAL, TEMPLATE

NAME = "paced"
CONTEXT_TOKENS = 1024
HIDDEN, FEED_FORWARD, LAYERS, HEADS, HEAD_SIZE = 384, 1024, 5, 6, 64
# The byte tokens of ASCII alone, as ByteLevel writes them: every other byte would be half a character.
ALPHABET = [*string.digits, *string.ascii_letters, *"!#$%&()*+,-./:;<=>?@[]^_{|}~", "Ġ", "Ċ"]
VOCABULARY = len(ALPHABET) + len(SPECIAL)


def write_paced_store(root: Path) -> Path:
    """Put the model into a store at ``root`` and return that."""
    folder = root / ".source"
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "eos_token_id": len(ALPHABET),
    }
    (folder / "config.json").write_text(json.dumps(config))
    names = {"chat_template": TEMPLATE, "eos_token": SPECIAL[0], "bos_token": SPECIAL[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    _tokenizer().save(str(folder / "tokenizer.json"))
    save_file(dict(_weights()), str(folder / "model.safetensors"), metadata={"format": "pt"})
    ModelStore(root).add_folder(folder, NAME)
    return root


def _tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(ALPHABET)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return made


def _weights() -> Iterator[tuple[str, torch.Tensor]]:
    noise = torch.Generator().manual_seed(7)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        made: torch.Tensor = torch.randn(rows, columns, generator=noise) * gain * columns**-0.5
        return made

    def into_stream(columns: int) -> torch.Tensor:
        made = matrix(HIDDEN, columns)
        made[0] = 0
        return made

    # The first number of every hidden state stays what the embedding made it, above 0. So the head can forbid the
    # special tokens: no answer ends before its length, and none has a token without text.
    embedding, head = torch.randn(VOCABULARY, HIDDEN, generator=noise), matrix(VOCABULARY, HIDDEN, 3.0)
    embedding[:, 0] = 4
    head[:, 0] = 0
    head[len(ALPHABET) :] = 0
    head[len(ALPHABET) :, 0] = -50
    yield "lm_head.weight", head
    yield "model.embed_tokens.weight", embedding
    yield "model.norm.weight", torch.ones(HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", torch.ones(HIDDEN)
        yield f"{prefix}post_attention_layernorm.weight", torch.ones(HIDDEN)
        for part in "qkv":
            yield f"{prefix}self_attn.{part}_proj.weight", matrix(HIDDEN, HIDDEN)
        yield f"{prefix}self_attn.o_proj.weight", into_stream(HIDDEN)
        yield f"{prefix}mlp.gate_proj.weight", matrix(FEED_FORWARD, HIDDEN)
        yield f"{prefix}mlp.up_proj.weight", matrix(FEED_FORWARD, HIDDEN)
        yield f"{prefix}mlp.down_proj.weight", into_stream(FEED_FORWARD)
