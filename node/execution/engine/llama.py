"""A decoder of the Llama family: weights and the arithmetic of one forward pass.

Llama, Mistral, Mixtral, Qwen 2 and 3 with and without experts, OLMoE: what they add to Llama stands in the shape
(``LlamaShape``); feed-forward layers are ``moe.py``'s.

Attention reads and writes a cache that this module does not know: the caller passes a function for it
(``attention.py``). Weights are cut as the matrix products want them: one matrix for query, key and value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor

from node.execution.engine.linears import Linears, PlainLinears, pick_linears
from node.execution.engine.moe import FeedForward, load_feed_forward
from node.execution.engine.norms import RmsNorm
from node.execution.engine.weights import Weights, open_weights
from node.execution.shape import LlamaShape, RopeScaling

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q (N, H, hd), k (N, KV, hd), v (N, KV, hd)) -> (N, H * hd); stores k and v on the way."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; matrices are (out, in), packed or not as the ``Linears`` in use made them."""

    attention_norm: RmsNorm
    qkv: Tensor
    qkv_bias: Tensor | None
    """((H + 2 KV) * hd,); Qwen 2."""
    qk_norm: Tensor | None
    """(H + KV, hd): the norm's scales for every head of query and key, in their order."""
    output: Tensor
    mlp_norm: RmsNorm
    mlp: FeedForward


class Llama:
    """The loaded model. ``embedding`` (V, D) stays unpacked; ``head`` is packed."""

    def __init__(
        self,
        shape: LlamaShape,
        weights: Weights,
        *,
        device: torch.device,
        dtype: torch.dtype,
        plain_layers: bool = False,
    ) -> None:
        """``plain_layers`` leaves the layers' matrices as they are, for what reads them itself."""
        self.shape, self.device, self.dtype, self.plain_layers = shape, device, dtype, plain_layers
        self._head_linears = pick_linears(device, dtype)
        self.linears = PlainLinears() if plain_layers else self._head_linears
        self.embedding = weights("model.embed_tokens.weight", shape.vocabulary, shape.hidden)
        self.norm = RmsNorm(weights("model.norm.weight", shape.hidden), shape.norm_epsilon)
        tied = shape.tied_embeddings
        head = self.embedding if tied else weights("lm_head.weight", shape.vocabulary, shape.hidden)
        self.head = self._head_linears.pack(head)
        self.layers = [_layer(i, shape, weights, self.linears) for i in range(shape.layers)]
        self.cos, self.sin = _rotations(shape, device, dtype)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the last hidden states (N, D) of N tokens, of any mix of sequences."""
        shape, linears = self.shape, self.linears
        x = F.embedding(tokens, self.embedding)
        rotated = shape.heads + shape.kv_heads
        # As large as what they are multiplied with: a product of 64 numbers at a time is half as fast.
        cos = self.cos[positions, None].expand(-1, rotated, -1).contiguous()
        sin = self.sin[positions, None].expand(-1, rotated, -1).contiguous()
        for i, layer in enumerate(self.layers):
            columns = linears.linear(layer.attention_norm(x), layer.qkv)
            if layer.qkv_bias is not None:
                columns = columns + layer.qkv_bias
            heads = columns.view(-1, rotated + shape.kv_heads, shape.head_size)
            qk, v = heads[:, :rotated], heads[:, rotated:]
            if layer.qk_norm is not None:
                qk = self._norm_heads(qk) * layer.qk_norm
            # The sine table is negative in its first half: rotate_half without a concatenation.
            qk = torch.addcmul(qk * cos, torch.roll(qk, shape.head_size // 2, -1), sin)
            mixed = attend(i, qk[:, : shape.heads], qk[:, shape.heads :], v)
            x = linears.linear_add(mixed, layer.output, x)
            x = layer.mlp.add_to(x, layer.mlp_norm(x))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (N, V) float32: ties in bfloat16 would let one sampler differ from another."""
        return self._head_linears.linear(self.norm(hidden), self.head).float()

    def _norm_heads(self, qk: Tensor) -> Tensor:
        """Return query and key heads (N, H + KV, hd) normed, without the norm's scales."""
        shape = self.shape
        if shape.qk_norm == "head":
            return F.rms_norm(qk, (shape.head_size,), None, shape.norm_epsilon)
        whole = (qk[:, : shape.heads], qk[:, shape.heads :])
        return torch.cat([F.rms_norm(part, part.shape[1:], None, shape.norm_epsilon) for part in whole], 1)


def load_llama(
    folder: Path, shape: LlamaShape, *, device: torch.device, dtype: torch.dtype, plain_layers: bool = False
) -> Llama:
    """Read the weights of ``folder``, whose headers the model store has checked.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape than the configuration says.
    """
    with open_weights(folder, device=device, dtype=dtype) as weights, torch.inference_mode():
        return Llama(shape, weights, device=device, dtype=dtype, plain_layers=plain_layers)


def _layer(number: int, shape: LlamaShape, weights: Weights, linears: Linears) -> Layer:
    prefix = f"model.layers.{number}."
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    sides = (("q", q), ("k", kv), ("v", kv))
    attention = f"{prefix}self_attn."
    matrices = [weights(f"{attention}{part}_proj.weight", side, shape.hidden) for part, side in sides]
    biases = [weights(f"{attention}{part}_proj.bias", side) for part, side in sides if shape.qkv_bias]
    return Layer(
        attention_norm=RmsNorm(weights(f"{prefix}input_layernorm.weight", shape.hidden), shape.norm_epsilon),
        qkv=linears.pack(torch.cat(matrices)),
        qkv_bias=torch.cat(biases) if biases else None,
        qk_norm=_head_scales(attention, shape, weights),
        output=linears.pack(weights(f"{attention}o_proj.weight", shape.hidden, q)),
        mlp_norm=RmsNorm(weights(f"{prefix}post_attention_layernorm.weight", shape.hidden), shape.norm_epsilon),
        mlp=load_feed_forward(number, shape, weights, linears, stacked=isinstance(linears, PlainLinears)),
    )


def _head_scales(attention: str, shape: LlamaShape, weights: Weights) -> Tensor | None:
    parts = (("q", shape.heads), ("k", shape.kv_heads))
    if shape.qk_norm is None:
        return None
    size = shape.head_size
    if shape.qk_norm == "head":
        return torch.cat([weights(f"{attention}{part}_norm.weight", size).expand(n, -1) for part, n in parts])
    return torch.cat([weights(f"{attention}{part}_norm.weight", n * size).view(n, -1) for part, n in parts])


def _rotations(shape: LlamaShape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (context, head size), computed in float32."""
    steps = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    frequencies = shape.rope_theta**-steps
    if shape.rope_scaling is not None:
        frequencies = _stretched(frequencies, shape.rope_scaling)
    angles = torch.outer(torch.arange(shape.context_tokens, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], -1)
    sin = angles.sin()
    sin[:, : shape.head_size // 2] *= -1
    return angles.cos().to(device, dtype), sin.to(device, dtype)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Return Llama 3.1's frequencies: slow ones divided by the factor, fast ones kept, a ramp between."""
    turns = scaling.original_context_tokens * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)
