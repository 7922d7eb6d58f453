"""A decoder of the Llama family: weights and the arithmetic of one forward pass.

Attention reads and writes a cache that this module does not know: the caller passes a function for it
(``attention.py``). Weights are cut as the matrix products want them: one matrix for query, key and value.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from safetensors import safe_open
from torch import Tensor

from node.execution.engine.linears import pick_linears
from node.execution.shape import LlamaShape, RopeScaling

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q (N, H, hd), k (N, KV, hd), v (N, KV, hd)) -> (N, H * hd); stores k and v on the way."""


@dataclass(slots=True)
class Layer:
    """One decoder layer; matrices are (out, in), packed or not as the ``Linears`` in use made them."""

    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class Llama:
    """The loaded model. ``embedding`` (V, D) stays unpacked; ``head`` is packed."""

    def __init__(
        self, shape: LlamaShape, weights: Callable[[str], Tensor], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self.linears = pick_linears(device, dtype)
        pack = self.linears.pack
        self.embedding = weights("model.embed_tokens.weight")
        self.norm = weights("model.norm.weight")
        self.head = pack(self.embedding if shape.tied_embeddings else weights("lm_head.weight"))
        self.layers = [_layer(f"model.layers.{i}.", weights, pack) for i in range(shape.layers)]
        self._cos, self._sin = _rotations(shape, device, dtype)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the last hidden states (N, D) of N tokens, of any mix of sequences."""
        shape, linears = self.shape, self.linears
        x = F.embedding(tokens, self.embedding)
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        rotated = shape.heads + shape.kv_heads
        for i, layer in enumerate(self.layers):
            normed = F.rms_norm(x, (shape.hidden,), layer.attention_norm, shape.norm_epsilon)
            heads = linears.linear(normed, layer.qkv).view(-1, rotated + shape.kv_heads, shape.head_size)
            qk, v = heads[:, :rotated], heads[:, rotated:]
            # The sine table is negative in its first half: rotate_half without a concatenation.
            qk = qk * cos + torch.roll(qk, shape.head_size // 2, -1) * sin
            mixed = attend(i, qk[:, : shape.heads], qk[:, shape.heads :], v)
            x = linears.linear_add(mixed, layer.output, x)
            normed = F.rms_norm(x, (shape.hidden,), layer.mlp_norm, shape.norm_epsilon)
            x = linears.linear_add(linears.gated(normed, layer.gate, layer.up), layer.down, x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (N, V) float32: ties in bfloat16 would let one sampler differ from another."""
        normed = F.rms_norm(hidden, (self.shape.hidden,), self.norm, self.shape.norm_epsilon)
        return self.linears.linear(normed, self.head).float()


def load_llama(folder: Path, shape: LlamaShape, *, device: torch.device, dtype: torch.dtype) -> Llama:
    """Read the weights of ``folder``, whose headers the model store has checked.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape than the configuration says.
    """
    expected = _expected_shapes(shape)
    with _open_weights(folder, device) as files:

        def weights(name: str) -> Tensor:
            tensor: Tensor = files[name].get_tensor(name)
            if tuple(tensor.shape) != (wanted := expected[name.split(".", 3)[-1] if ".layers." in name else name]):
                raise ValueError(f"{name}: expected shape {wanted}, got {tuple(tensor.shape)}")
            # A copy even when the type fits: otherwise the weights stay pages of a file that may change.
            return tensor.to(dtype, copy=True)

        with torch.inference_mode():
            return Llama(shape, weights, device=device, dtype=dtype)


def _expected_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return {
        "model.embed_tokens.weight": (shape.vocabulary, shape.hidden),
        "lm_head.weight": (shape.vocabulary, shape.hidden),
        "model.norm.weight": (shape.hidden,),
        "input_layernorm.weight": (shape.hidden,),
        "post_attention_layernorm.weight": (shape.hidden,),
        "self_attn.q_proj.weight": (q, shape.hidden),
        "self_attn.k_proj.weight": (kv, shape.hidden),
        "self_attn.v_proj.weight": (kv, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, q),
        "mlp.gate_proj.weight": (shape.feed_forward, shape.hidden),
        "mlp.up_proj.weight": (shape.feed_forward, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.feed_forward),
    }


@contextmanager
def _open_weights(folder: Path, device: torch.device) -> Iterator[dict[str, Any]]:  # Any: safetensors has no types
    """Map every weights file and give tensor name -> file that has it."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        found = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(str(path), framework="pt", device=str(device)))
            found.update(dict.fromkeys(file.keys(), file))
        yield found


def _layer(prefix: str, weights: Callable[[str], Tensor], pack: Callable[[Tensor], Tensor]) -> Layer:
    def matrix(name: str) -> Tensor:
        return weights(f"{prefix}{name}.weight")

    return Layer(
        attention_norm=matrix("input_layernorm"),
        qkv=pack(torch.cat([matrix(f"self_attn.{part}_proj") for part in "qkv"])),
        output=pack(matrix("self_attn.o_proj")),
        mlp_norm=matrix("post_attention_layernorm"),
        gate=pack(matrix("mlp.gate_proj")),
        up=pack(matrix("mlp.up_proj")),
        down=pack(matrix("mlp.down_proj")),
    )


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
