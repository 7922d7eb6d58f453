"""A decode step whose shapes never change, for what can only run such: a CUDA graph (``cuda_graphs.py``).

It is made for a few batch sizes; a batch between two of them is padded. Prompts, and steps beside them, stay with
``attention.py``. Design: engine.md, 4.1; decision 0017.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  the name that every torch program uses
from torch import Tensor

from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama
from node.execution.engine.scheduler import Sequence, decode_inputs


class DecodeStep:
    """The arithmetic of one step for ``rows`` sequences in the lowest slots, one token each."""

    def __init__(self, model: Llama, cache: KvCache, rows: int) -> None:
        self.rows = rows
        self._model, self._written = model, cache.rows
        self._held = cache.held[:, :, :rows].transpose(3, 4)
        self._span = torch.arange(cache.context_tokens, device=model.device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the last hidden states (rows, D), as ``Llama.forward``.

        Args:
            inputs: (3, rows) int64 on the model's device: tokens, positions, and the rows of the cache that are
                written.
        """
        tokens, positions, targets = inputs.unbind(0)
        # The whole context of each slot, masked: how long an answer is would be a shape.
        seen = (self._span <= positions[:, None])[:, None, None]
        shape = self._model.shape

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for written, new in zip(self._written[layer].unbind(0), (k, v), strict=True):
                written.index_copy_(0, targets, new)
            keys, values = self._held[layer].unbind(0)
            # As in attention.py: query heads that share a key head stand where the query length goes.
            grouped = q.reshape(self.rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_size)
            return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen).reshape(self.rows, -1)

        return self._model.forward(tokens, positions, attend)


Program: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs as ``DecodeStep``'s, on the host -> hidden states (rows, D), overwritten by the next call of any size."""


class Recorder(Protocol):
    """Makes steps fast."""

    def record(self, step: DecodeStep) -> Program:
        """Return what does ``step``'s work."""


class StaticDecode:
    """The sizes that one model decodes in."""

    def __init__(self, model: Llama, cache: KvCache, recorder: Recorder) -> None:
        """Record every size, the largest first: what the others need fits into its memory."""
        self._cache = cache
        self.sizes = sizes_of(cache.slots)
        self._programs = {rows: recorder.record(DecodeStep(model, cache, rows)) for rows in reversed(self.sizes)}

    def run(self, decodes: Items[Sequence]) -> Tensor | None:
        """Return the last hidden states (N, D); ``None``, with nothing done, where slots are left out between."""
        if any(sequence.slot != i for i, sequence in enumerate(decodes)):
            return None
        rows = next(size for size in self.sizes if size >= len(decodes))
        return self._programs[rows](self._inputs(decodes, rows))[: len(decodes)]

    def _inputs(self, decodes: Items[Sequence], rows: int) -> Tensor:
        padding = rows - len(decodes)
        tokens, positions, targets = decode_inputs(decodes, self._cache.context_tokens)
        # Slots behind the running ones may hold a prefix that somebody uses again.
        return torch.tensor(
            [tokens + [0] * padding, positions + [0] * padding, targets + [self._cache.spare_row] * padding]
        )


def sizes_of(rows_max: int) -> tuple[int, ...]:
    """Return 1, 2, 4, 8 ... and ``rows_max`` itself."""
    powers = [1 << i for i in range(rows_max.bit_length()) if 1 << i < rows_max]
    return (*powers, rows_max)
