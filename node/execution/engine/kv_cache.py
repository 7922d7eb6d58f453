"""Keys and values of the sequences that run: one slot per sequence, every slot as long as the context.

Slots keep what a job reserved until it ends, so that a paid job is never evicted. Running sequences are kept in
the lowest slots, where a decode step reads the cache without copying it.
"""

import torch

from node.execution.shape import LlamaShape


class KvCache:
    """Keys and values (slots, KV heads, context, head size) for each layer; pages are touched on first use."""

    def __init__(
        self, shape: LlamaShape, *, slots: int, context_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (slots, shape.kv_heads, context_tokens, shape.head_size)
        # Zeros, not empty: attention multiplies masked positions by 0, and 0 times a stray NaN is NaN.
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.slots, self.context_tokens = slots, context_tokens

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` of slot ``source`` to slot ``target``."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :tokens] = tensor[source, :, :tokens]
