"""How a step multiplies by weights: packed for the CPU, plain elsewhere.

Which matrices a model has is the model's business (``llama.py``).
"""

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor


class Linears(Protocol):
    """How a step multiplies by weights."""

    def pack(self, weight: Tensor) -> Tensor:
        """Return ``weight`` as the other methods want it."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x · weightᵀ."""

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x · weightᵀ."""

    def gated(self, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """Return silu(x · gateᵀ) * (x · upᵀ)."""


class PlainLinears:
    """``F.linear``: CUDA, and CPUs without oneDNN."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        return residual + F.linear(x, weight)

    def gated(self, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(F.linear(x, gate)) * F.linear(x, up)


class PackedLinears:
    """oneDNN with weights packed once: 1.3 to 2 times ``F.linear`` on the CPU for batches of 1 to 16.

    The operators are what torch's own compiler emits and have private names, so ``pick_linears`` looks first.
    """

    def __init__(self) -> None:
        self._reorder = torch.ops.mkldnn._reorder_linear_weight
        self._pointwise = torch.ops.mkldnn._linear_pointwise

    def pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = self._reorder(weight)
        return packed

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = self._pointwise(x, weight, None, "none", [], "")
        return y

    def linear_add(self, x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = self._pointwise.binary(x, residual, weight, None, "add")
        return y

    def gated(self, x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        swish = self._pointwise(x, gate, None, "swish", [], "")
        y: Tensor = self._pointwise.binary(x, swish, up, None, "mul")
        return y


def pick_linears(device: torch.device, dtype: torch.dtype) -> Linears:
    """Return packed products where this machine has them for ``dtype``, plain ones elsewhere."""
    ops = torch.ops.mkldnn
    known = all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    if device.type != "cpu" or not torch._C._has_mkldnn or not known:
        return PlainLinears()
    if dtype == torch.float32 or (dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported()):
        return PackedLinears()
    return PlainLinears()
