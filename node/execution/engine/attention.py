"""Attention of one pass over the cache: what is the same for every layer is made once.

Decodes go through one call for each run of slots with about as many tokens, each prompt chunk through its own. On
CUDA this is the same code; paged attention in one call is the next step there (not run on a GPU yet).
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor

from node.execution.engine.chunk_attention import ChunkAttention, chunk_attention
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.scheduler import Plan

_CALL_TOKENS: Final = {"cpu": 128, "cuda": 1 << 20}
"""How many tokens of padding cost what another call costs: 15 us on a core; on CUDA calls are the dearer ones."""


@dataclass(frozen=True, slots=True)
class _Decodes:
    """Rows of the pass that attend to a run of slots in one call, a row each."""

    rows: slice
    held: tuple[Tensor, ...]
    """For each layer (2, slots, KV heads, longest, head size): keys and values, read where they lie."""
    mask: Tensor | None
    """What of it each row may see; None where that is all."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        keys, values = self.held[layer].unbind(0)
        n, heads, size = q.shape
        kv_heads = keys.shape[1]
        # The query heads that share a key head stand where the query length goes: no copy of keys per head.
        grouped = q.reshape(n, kv_heads, heads // kv_heads, size)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.mask).reshape(n, -1)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of the pass that are the next tokens of one slot's prompt."""

    rows: slice
    held: tuple[Tensor, ...]
    """As ``_Decodes.held``, of one slot."""
    attention: ChunkAttention

    def attend(self, layer: int, q: Tensor) -> Tensor:
        keys, values = self.held[layer]
        return self.attention.attend(q, keys[0], values[0])


class StepAttention:
    """Positions, masks and slots of one plan; call ``attend`` once for each layer."""

    def __init__(self, plan: Plan, cache: KvCache, device: torch.device) -> None:
        self._cache, self._device = cache, device
        assert [sequence.slot for sequence in plan.decodes] == sorted(sequence.slot for sequence in plan.decodes)
        lengths = [sequence.cached + 1 for sequence in plan.decodes]
        slots = [sequence.slot for sequence in plan.decodes]
        targets = [slot * cache.context_tokens + length - 1 for slot, length in zip(slots, lengths, strict=True)]
        self._spans: list[_Decodes | _Chunk] = [
            self._decodes(run, slots[run.start], lengths[run])
            for run in runs_of(slots, lengths, call_tokens=_CALL_TOKENS[device.type])
        ]
        for sequence, tokens in plan.chunks:
            row, start, end = len(targets), sequence.cached, sequence.cached + tokens
            first = sequence.slot * cache.context_tokens
            targets += range(first + start, first + end)
            held = self._held(sequence.slot, 1, end)
            self._spans.append(_Chunk(slice(row, row + tokens), held, chunk_attention(start, end, device)))
        self._targets = torch.tensor(targets, device=device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the pass's keys and values and return (N, H * hd); see ``llama.Attend``."""
        keys, values = self._cache.rows[layer].unbind(0)
        keys.index_copy_(0, self._targets, k)
        values.index_copy_(0, self._targets, v)
        mixed = [span.attend(layer, q[span.rows]) for span in self._spans]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _decodes(self, run: slice, slot: int, lengths: Items[int]) -> _Decodes:
        longest, mask = max(lengths), None
        if min(lengths) < longest:
            allowed = torch.tensor(lengths, device=self._device)[:, None]
            mask = (torch.arange(longest, device=self._device) < allowed)[:, None, None]
        return _Decodes(run, self._held(slot, len(lengths), longest), mask)

    def _held(self, slot: int, count: int, longest: int) -> tuple[Tensor, ...]:
        return self._cache.held[:, :, slot : slot + count, :longest].transpose(3, 4).unbind(0)


def runs_of(slots: Items[int], lengths: Items[int], *, call_tokens: int) -> list[slice]:
    """Cut ascending ``slots`` into runs without a hole, each read as long as its longest.

    A run ends where the padding would cost more than another call.
    """
    runs: list[slice] = []
    start = longest = padding = 0
    for i, length in enumerate(lengths):
        grown = padding + (i - start) * max(0, length - longest) + max(0, longest - length)
        if i > start and (slots[i] != slots[i - 1] + 1 or grown > call_tokens):
            runs.append(slice(start, i))
            start, longest, padding = i, length, 0
        else:
            longest, padding = max(longest, length), grown
    return [*runs, slice(start, len(lengths))] if lengths else runs
