"""Text encoders of the BERT family: tokens to hidden states, pooled to one vector for each text (``embed``).

The texts of a step lie one after the other without padding, and each attends to itself alone: a vector does not
depend on what was computed beside it, up to the rounding of longer products.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from node.errors import JobRefusedError, ModelError
from node.execution.engine.items import Item
from node.execution.engine.tensors import refuse_unless
from node.execution.engine.text import load_tokenizer
from protocol.fields import Task
from protocol.task import unpack_tokens
from protocol.tasks.embed import EmbedInput, EmbedOutput
from protocol.tasks.registry import EMBED, ItemInput, ItemOutput

# Of one step: on the CPU 75 to 90 ms of MiniLM on one core of an EPYC, whatever the texts' lengths.
BUDGET_TOKENS: Final = {"cpu": 256, "cuda": 16_384}
# Longer texts are refused before they are tokenised: a word of a hundred bytes for each token.
_BYTES_PER_TOKEN_MAX: Final = 100
_EXAMPLE_TEXTS: Final = 8
_EXAMPLE_TOKENS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """What ``config.json`` says. ``tokens_max`` and ``pooling`` are written there by the import."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    positions: int
    norm_epsilon: float
    tokens_max: int
    pooling: Literal["mean", "cls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem:
    tokens: list[int]

    @property
    def weight(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    qkv: tuple[Tensor, Tensor]
    attended: tuple[Tensor, Tensor]
    attended_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]


class Encoder:
    """Implements ``items.Network``."""

    task: Task = EMBED

    def __init__(
        self, shape: EncoderShape, weights: dict[str, Tensor], tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self._shape, self._tokenizer, self._device = shape, tokenizer, device
        self.budget = BUDGET_TOKENS[device.type]
        self._words = weights["embeddings.word_embeddings.weight"]
        # Texts here have one segment, so its embedding belongs to the position.
        segment = weights["embeddings.token_type_embeddings.weight"][0]
        self._positions = weights["embeddings.position_embeddings.weight"] + segment
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_layer(weights, f"encoder.layer.{index}.") for index in range(shape.layers)]

    def items(self, task_input: ItemInput) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        assert isinstance(task_input, EmbedInput)
        made = [self._read_text(text, place) for place, text in enumerate(task_input.texts)]
        made += [self._read_tokens(unpack_tokens(ids), place) for place, ids in enumerate(task_input.tokens)]
        return sum(item.weight for item in made), list(made)

    def compute(self, items: Sequence[Item]) -> list[ItemOutput | None]:
        """See ``items.Network``."""
        texts = [item.tokens for item in items if isinstance(item, TextItem)]
        hidden = self._encode(texts)
        pooled = torch.stack([it[0] if self._shape.pooling == "cls" else it.mean(dim=0) for it in hidden])
        vectors = functional.normalize(pooled, dim=-1).cpu().numpy().astype("<f4")
        finite = np.isfinite(vectors).all(axis=1)
        return [EmbedOutput(vector=it.tobytes()) if ok else None for it, ok in zip(vectors, finite, strict=True)]

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``items.Network``; what lies behind a row's tokens is zero."""
        ids, mask = tensors["input_ids"], tensors["attention_mask"].bool()
        hidden = torch.zeros(*ids.shape, self._shape.hidden, device=self._device)
        hidden[mask] = torch.cat(self._encode([row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]))
        return {"hidden": hidden}

    def check(self, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See ``items.Network``."""
        refuse_unless(tensors, dict.fromkeys(("input_ids", "attention_mask"), (torch.int64, (None, None))))
        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        rows, columns = ids.shape
        if mask.shape != ids.shape or columns > self._shape.positions:
            raise JobRefusedError(
                f"expected input_ids and attention_mask of one shape, at most {self._shape.positions} wide",
                code="input",
            )
        is_zero_or_one = bool(((mask == 0) | (mask == 1)).all())
        if not is_zero_or_one or bool((mask[:, :-1] < mask[:, 1:]).any()) or bool((mask[:, 0] == 0).any()):
            raise JobRefusedError("attention_mask: expected ones, then zeros, in each row", code="input")
        if bool(((ids < 0) | (ids >= self._shape.vocabulary)).any()):
            raise JobRefusedError("input_ids: expected tokens that the model knows", code="input")
        return {"hidden": (rows, columns, self._shape.hidden)}

    def example(self) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        tokens = [token % self._shape.vocabulary for token in range(_EXAMPLE_TOKENS)]
        return _EXAMPLE_TEXTS * len(tokens), [TextItem(tokens=tokens) for _ in range(_EXAMPLE_TEXTS)]

    def _read_text(self, text: str, place: int) -> TextItem:
        limit = self._shape.tokens_max
        if len(text.encode()) > limit * _BYTES_PER_TOKEN_MAX:
            raise JobRefusedError(
                f"text {place} has {len(text.encode())} bytes, more than {limit} tokens hold: this model reads "
                f"at most {limit} tokens of a text",
                code="context_exceeded",
            )
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=True).ids
        return self._read_tokens(ids, place)

    def _read_tokens(self, ids: list[int], place: int) -> TextItem:
        limit = self._shape.tokens_max
        if len(ids) > limit:
            raise JobRefusedError(
                f"text {place} has {len(ids)} tokens, this model reads at most {limit} of a text",
                code="context_exceeded",
            )
        if not ids or max(ids) >= self._shape.vocabulary:
            raise JobRefusedError(
                f"text {place} has no tokens, or some beyond the model's {self._shape.vocabulary}", code="input"
            )
        return TextItem(tokens=ids)

    def _encode(self, texts: Sequence[list[int]]) -> tuple[Tensor, ...]:
        """Return the last hidden states of each text, (T, D) float32."""
        lengths = [len(tokens) for tokens in texts]
        ids = torch.tensor([token for tokens in texts for token in tokens], device=self._device)
        places = torch.cat([torch.arange(length, device=self._device) for length in lengths])
        x = self._normalise(self._words[ids] + self._positions[places], self._norm)
        for layer in self._layers:
            attended = functional.linear(self._attend(x, lengths, layer), *layer.attended)
            x = self._normalise(x + attended, layer.attended_norm)
            wide = functional.gelu(functional.linear(x, *layer.up))
            x = self._normalise(x + functional.linear(wide, *layer.down), layer.norm)
        return torch.split(x, lengths)

    def _attend(self, x: Tensor, lengths: list[int], layer: _Layer) -> Tensor:
        heads = self._shape.heads
        qkv = functional.linear(x, *layer.qkv).view(len(x), 3, heads, -1)
        attended = []
        for part in torch.split(qkv, lengths):
            # (T, 3, H, S) to three of (1, H, T, S).
            query, key, value = part.permute(1, 2, 0, 3).unsqueeze(1)
            out = functional.scaled_dot_product_attention(query, key, value)
            attended.append(out[0].transpose(0, 1).reshape(part.shape[0], -1))
        return torch.cat(attended)

    def _normalise(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return functional.layer_norm(x, (self._shape.hidden,), *norm, eps=self._shape.norm_epsilon)


def load_encoder(folder: Path, device: torch.device) -> Encoder:
    """Load an encoder in float32.

    Raises:
        ModelError, KeyError, ValueError, OSError: the files are no encoder that runs here.
    """
    shape = _read_shape(folder)
    with safe_open(str(folder / "model.safetensors"), "pt", device=str(device)) as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys() if "position_ids" not in name}  # noqa: SIM118 - no dict
    return Encoder(shape, weights, load_tokenizer(folder), device)


def _read_shape(folder: Path) -> EncoderShape:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())  # Any: checked here
    for key, expected in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if config.get(key, expected) != expected:
            raise ModelError(f"config.json: expected {key} {expected!r}, got {config[key]!r}")
    pooling = config.get("pooling", "mean")
    if pooling not in ("mean", "cls"):
        raise ModelError(f"config.json: expected pooling 'mean' or 'cls', got {pooling!r}")
    positions = int(config["max_position_embeddings"])
    return EncoderShape(
        layers=int(config["num_hidden_layers"]),
        hidden=int(config["hidden_size"]),
        heads=int(config["num_attention_heads"]),
        vocabulary=int(config["vocab_size"]),
        positions=positions,
        norm_epsilon=float(config["layer_norm_eps"]),
        tokens_max=min(int(config.get("tokens_max", positions)), positions),
        pooling=pooling,
    )


def _layer(weights: dict[str, Tensor], prefix: str) -> _Layer:
    parts = [_pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
    return _Layer(
        qkv=(torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])),
        attended=_pair(weights, f"{prefix}attention.output.dense"),
        attended_norm=_pair(weights, f"{prefix}attention.output.LayerNorm"),
        up=_pair(weights, f"{prefix}intermediate.dense"),
        down=_pair(weights, f"{prefix}output.dense"),
        norm=_pair(weights, f"{prefix}output.LayerNorm"),
    )


def _pair(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]
