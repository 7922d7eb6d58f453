"""Attention of one pass over the cache: masks and slots are the same for every layer and made once.

Decodes go through one call for all sequences, each prompt chunk through its own. On CUDA this is the same code;
paged attention in one call is the next step there (not run on a GPU yet).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor

from node.execution.engine.kv_cache import KvCache
from node.execution.engine.scheduler import Plan
from node.execution.shape import LlamaShape


@dataclass(frozen=True, slots=True)
class _Chunk:
    slot: int
    start: int
    end: int
    row: int
    mask: Tensor | None
    """(n, end) bool; None for a chunk that begins its prompt, which is plainly causal."""


class StepAttention:
    """Positions, masks and slots of one plan; call ``attend`` once for each layer."""

    def __init__(self, plan: Plan, cache: KvCache, shape: LlamaShape, device: torch.device) -> None:
        self._cache, self._shape = cache, shape
        positions = [sequence.cached for sequence in plan.decodes]
        slots = [sequence.slot for sequence in plan.decodes]
        self._decodes = len(slots)
        self._longest = max(positions, default=0) + 1
        # The lowest slots in order are read in place; others are gathered, which copies them.
        self._in_place = slots == list(range(len(slots)))
        self._slots = torch.tensor(slots, device=device)
        self._positions = torch.tensor(positions, device=device)
        self._mask = self._decode_mask(positions, device)
        self._chunks, row = [], len(slots)
        for sequence, tokens in plan.chunks:
            start, end = sequence.cached, sequence.cached + tokens
            mask = None if start == 0 else _chunk_mask(start, end, device)
            self._chunks.append(_Chunk(sequence.slot, start, end, row, mask))
            row += tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the pass's keys and values and return (N, H * hd); see ``llama.Attend``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        mixed = []
        if self._decodes:
            n = self._decodes
            mixed.append(self._attend_decodes(keys, values, (q[:n], k[:n], v[:n])))
        for chunk in self._chunks:
            rows = slice(chunk.row, chunk.row + chunk.end - chunk.start)
            mixed.append(_attend_chunk(chunk, keys, values, (q[rows], k[rows], v[rows])))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _attend_decodes(self, keys: Tensor, values: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        q, k, v = qkv
        n, shape = self._decodes, self._shape
        keys[self._slots, :, self._positions] = k
        values[self._slots, :, self._positions] = v
        which = slice(n) if self._in_place else self._slots
        # The query heads that share a key head stand where the query length goes: no copy of keys per head.
        grouped = q.reshape(n, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size)
        return F.scaled_dot_product_attention(
            grouped, keys[which, :, : self._longest], values[which, :, : self._longest], attn_mask=self._mask
        ).reshape(n, -1)

    def _decode_mask(self, positions: list[int], device: torch.device) -> Tensor | None:
        """Return (decodes, 1, 1, longest) bool, or None when all are equally long."""
        if len(set(positions)) < 2:
            return None
        allowed = torch.arange(self._longest, device=device) <= self._positions[:, None]
        return allowed[:, None, None]


def _chunk_mask(start: int, end: int, device: torch.device) -> Tensor:
    return torch.arange(end, device=device) <= torch.arange(start, end, device=device)[:, None]


def _attend_chunk(chunk: _Chunk, keys: Tensor, values: Tensor, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    q, k, v = (part.transpose(0, 1) for part in qkv)
    keys[chunk.slot, :, chunk.start : chunk.end] = k
    values[chunk.slot, :, chunk.start : chunk.end] = v
    mixed = F.scaled_dot_product_attention(
        q[None],
        keys[chunk.slot, :, : chunk.end][None],
        values[chunk.slot, :, : chunk.end][None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1).reshape(chunk.end - chunk.start, -1)
