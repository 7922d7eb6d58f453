"""Keys and values of the sequences that run: one slot per sequence, every slot as long as the context.

Slots keep what a job reserved until it ends, so that a paid job is never evicted. Running sequences are kept in
the lowest slots, where a decode step reads the cache without copying it. Which slot holds what is the scheduler's
business.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from node.execution.engine.scheduler import Move
from node.execution.shape import LlamaShape

_LINE_BYTES: Final = 64
# The compiled step reads whole lines: off them it took 131 ms, on them 52, for eight sequences of 1,900 tokens.
# torch's fused call is the other way about, for a reason that was not found: 132 ms on lines, and 100 sixteen
# bytes behind them, for four sequences of 1,900; 40.2 and 37.2 for sixteen of 60.
_FIRST_BYTE: Final = 16


class KvCache:
    """Keys and values of every layer in one tensor; pages are touched on first use.

    ``held`` is (layers, 2, slots, context, KV heads, head size), keys first; ``rows`` the same memory with slots
    and context as one dimension, and one row more: ``spare_row``, which is written for padding and never read. A
    token lies in one piece, so that a pass writes all of its tokens in one call.
    """

    def __init__(
        self,
        shape: LlamaShape,
        *,
        slots: int,
        context_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        is_aligned: bool = False,
    ) -> None:
        """``is_aligned`` begins every token on a line of the processor's cache, where its size allows: CPU."""
        self.spare_row = slots * context_tokens
        size = (shape.layers, 2, self.spare_row + 1, shape.kv_heads, shape.head_size)
        self.rows = _zeros(size, dtype, device, first_byte=0 if is_aligned else _FIRST_BYTE)
        self.held = self.rows[:, :, : self.spare_row].view(*size[:2], slots, context_tokens, *size[3:])
        self.slots, self.context_tokens = slots, context_tokens

    def move(self, move: Move) -> None:
        """Do what ``move`` says in every layer."""
        source, target = self.held[:, :, move.source], self.held[:, :, move.target]
        displaced = target[:, :, : move.back].clone()
        target[:, :, : move.tokens] = source[:, :, : move.tokens]
        source[:, :, : move.back] = displaced


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, first_byte: int) -> Tensor:
    """Return zeros, on the CPU ``first_byte`` behind a line.

    Not whatever lies there: attention multiplies masked positions by 0, and 0 times a stray NaN is NaN.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    # torch.zeros writes every page (0.2 to 1.7 s for 377 MB at start); numpy takes zero pages from the kernel.
    count = math.prod(size) * dtype.itemsize
    raw = np.zeros(count + _LINE_BYTES, dtype=np.uint8)
    first = (first_byte - raw.ctypes.data) % _LINE_BYTES
    return torch.from_numpy(raw[first : first + count]).view(dtype).view(size)
