"""Keys and values of the sequences that run: one slot per sequence, every slot as long as the context.

Slots keep what a job reserved until it ends, so that a paid job is never evicted. Running sequences are kept in
the lowest slots, where a decode step reads the cache without copying it. Which slot holds what is the scheduler's
business.
"""

import math

import numpy as np
import torch
from torch import Tensor

from node.execution.engine.scheduler import Move
from node.execution.shape import LlamaShape


class KvCache:
    """Keys and values of every layer in one tensor; pages are touched on first use.

    ``held`` is (layers, 2, slots, context, KV heads, head size), keys first; ``rows`` the same memory with slots
    and context as one dimension, and one row more: ``spare_row``, which is written for padding and never read. A
    token lies in one piece, so that a pass writes all of its tokens in one call.
    """

    def __init__(
        self, shape: LlamaShape, *, slots: int, context_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spare_row = slots * context_tokens
        size = (shape.layers, 2, self.spare_row + 1, shape.kv_heads, shape.head_size)
        self.rows = _zeros(size, dtype, device)
        self.held = self.rows[:, :, : self.spare_row].view(*size[:2], slots, context_tokens, *size[3:])
        self.slots, self.context_tokens = slots, context_tokens

    def move(self, move: Move) -> None:
        """Do what ``move`` says in every layer."""
        source, target = self.held[:, :, move.source], self.held[:, :, move.target]
        displaced = target[:, :, : move.back].clone()
        target[:, :, : move.tokens] = source[:, :, : move.tokens]
        source[:, :, : move.back] = displaced


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros: attention multiplies masked positions by 0, and 0 times a stray NaN is NaN."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # torch.zeros writes every page (0.2 to 1.7 s for 377 MB at start); numpy takes zero pages from the kernel.
    raw = np.zeros(math.prod(size) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(size)
