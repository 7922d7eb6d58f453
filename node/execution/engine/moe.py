"""Feed-forward layers of a decoder: one pair of matrices for every token, or a few of many experts for each.

Tokens of a pass are grouped by expert, whatever sequences they belong to, so that an expert's weights are read
once for all of them. A token's result depends on its own experts alone, and they are added in the order of their
weights: it is the same alone and in a batch. Gating as the ``transformers`` models of these families do it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor

from node.execution.engine.linears import Linears
from node.execution.engine.weights import Weights
from node.execution.shape import ExpertShape, LlamaShape


class FeedForward(Protocol):
    """What stands between the second norm and the residual of a layer."""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual`` (N, D) plus this layer's output for ``x`` (N, D)."""


@dataclass(frozen=True, slots=True)
class GatedMatrices:
    """down(silu(gate x) * up x), with matrices (out, in) as ``linears`` packed them."""

    linears: Linears
    gate: Tensor
    up: Tensor
    down: Tensor

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self.linears.linear_add(self.linears.gated(x, self.gate, self.up), self.down, residual)

    def output(self, x: Tensor) -> Tensor:
        """Return the output for ``x`` alone."""
        return self.linears.linear(self.linears.gated(x, self.gate, self.up), self.down)


class Experts(Protocol):
    """Every expert of a layer, applied to rows that are sorted by expert."""

    def output(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Return (M, D) for ``rows`` (M, D), of which ``counts[e]`` in a row belong to expert e."""


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Each expert's packed matrices, called in turn: the CPU."""

    experts: tuple[GatedMatrices, ...]

    def output(self, rows: Tensor, counts: Tensor) -> Tensor:
        parts, start = [], 0
        for expert, count in zip(self.experts, counts.tolist(), strict=True):
            if count:
                parts.append(expert.output(rows[start : start + count]))
                start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class StackedExperts:
    """All experts' matrices in two tensors and grouped products: CUDA, where counts never leave the device.

    Not run on a GPU yet; the same code runs on the CPU in tests.
    """

    gate_up: Tensor
    """(E, 2 F, D)"""
    down: Tensor
    """(E, D, F)"""

    def output(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
        return F.grouped_mm(F.silu(gate) * up, self.down.transpose(1, 2), offs=ends)


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The router, its experts, and an expert for every token where the family has one."""

    shape: ExpertShape
    router: Tensor
    """(E, D), never packed: a product of a few hundred kilobytes."""
    experts: Experts
    shared: GatedMatrices | None = None
    shared_gate: Tensor | None = None
    """(1, D)"""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        # Not bincount, which waits for the device to learn how long its answer is.
        counts = (flat[:, None] == torch.arange(self.shape.count, device=x.device)).sum(0)
        output = torch.empty(len(flat), x.shape[1], dtype=x.dtype, device=x.device)
        output[order] = self.experts.output(x[order // self.shape.active], counts)
        mixed = (output.view(len(x), self.shape.active, -1) * weights[..., None]).sum(1)
        if self.shared is not None and self.shared_gate is not None:
            mixed = mixed + torch.sigmoid(F.linear(x, self.shared_gate)) * self.shared.output(x)
        return residual + mixed

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (N, active), in x's dtype, and numbers (N, active) of each token's experts."""
        # In float32: two experts whose scores are one bfloat16 apart would be a coin toss.
        scores = F.linear(x, self.router).softmax(-1, dtype=torch.float32)
        weights, chosen = scores.topk(self.shape.active, dim=-1)
        if self.shape.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen


def load_feed_forward(
    layer: int, shape: LlamaShape, weights: Weights, linears: Linears, *, stacked: bool
) -> FeedForward:
    """Read the feed-forward part of a layer; ``stacked`` keeps all experts in two tensors."""
    prefix = f"model.layers.{layer}."
    if shape.experts is None or layer in shape.experts.dense_layers:
        return _gated(f"{prefix}mlp.", (shape.hidden, shape.feed_forward), weights, linears)
    if shape.family == "mixtral":
        prefix, names = f"{prefix}block_sparse_moe.", ("w1", "w3", "w2")
    else:
        prefix, names = f"{prefix}mlp.", ("gate_proj", "up_proj", "down_proj")
    experts, shared = shape.experts, None
    size = (shape.hidden, experts.feed_forward)
    if experts.shared_feed_forward:
        shared = _gated(f"{prefix}shared_expert.", (shape.hidden, experts.shared_feed_forward), weights, linears)
    every = [f"{prefix}experts.{number}." for number in range(experts.count)]
    return ExpertLayer(
        shape=experts,
        router=weights(f"{prefix}gate.weight", experts.count, shape.hidden),
        experts=_stacked(every, names, size, weights)
        if stacked
        else PackedExperts(tuple(_gated(expert, size, weights, linears, names=names) for expert in every)),
        shared=shared,
        shared_gate=weights(f"{prefix}shared_expert_gate.weight", 1, shape.hidden) if shared else None,
    )


def _gated(
    prefix: str,
    size: tuple[int, int],
    weights: Weights,
    linears: Linears,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> GatedMatrices:
    hidden, feed_forward = size
    gate, up, down = names
    return GatedMatrices(
        linears,
        gate=linears.pack(weights(f"{prefix}{gate}.weight", feed_forward, hidden)),
        up=linears.pack(weights(f"{prefix}{up}.weight", feed_forward, hidden)),
        down=linears.pack(weights(f"{prefix}{down}.weight", hidden, feed_forward)),
    )


def _stacked(
    prefixes: list[str], names: tuple[str, str, str], size: tuple[int, int], weights: Weights
) -> StackedExperts:
    hidden, feed_forward = size
    gate, up, down = names
    # Filled one by one: stacking a list would hold every expert twice.
    gate_up_all = down_all = None
    for number, prefix in enumerate(prefixes):
        pair = torch.cat([weights(f"{prefix}{name}.weight", feed_forward, hidden) for name in (gate, up)])
        back = weights(f"{prefix}{down}.weight", hidden, feed_forward)
        if gate_up_all is None or down_all is None:
            gate_up_all, down_all = (x.new_empty(len(prefixes), *x.shape) for x in (pair, back))
        gate_up_all[number], down_all[number] = pair, back
    assert gate_up_all is not None and down_all is not None
    return StackedExperts(gate_up_all, down_all)
