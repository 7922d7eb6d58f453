import itertools

import pytest
import torch
import torch.nn.functional as F

from node.execution.engine.chunk_attention import BlockedAttention, FusedAttention
from node.execution.memory_plan import ATTENTION_ROWS

CPU = torch.device("cpu")
SIZE = 16


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (9, 3)], ids=["no groups", "pairs", "groups of 3"])
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, ATTENTION_ROWS), (0, 3 * ATTENTION_ROWS + 5), (7, 8), (30, 30 + ATTENTION_ROWS + 1), (300, 340)],
)
def test_both_ways_equal_one_call_with_a_mask(start: int, end: int, heads: tuple[int, int]) -> None:
    torch.manual_seed(end)
    query_heads, key_heads = heads
    q = torch.randn(end - start, query_heads, SIZE)
    # As in the cache: a token's heads lie together, and more tokens may follow.
    keys, values = torch.randn(2, end + 3, key_heads, SIZE)[:, :end].transpose(1, 2)
    seen = torch.arange(end) <= torch.arange(start, end)[:, None]
    expected = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=seen, enable_gqa=True
    )
    for way in (BlockedAttention(start), FusedAttention(start, end, CPU)):
        got = way.attend(q, keys, values)
        torch.testing.assert_close(got, expected[0].transpose(0, 1).reshape(end - start, -1), rtol=1e-5, atol=1e-5)


def test_chunk_does_not_depend_on_how_a_text_was_cut() -> None:
    torch.manual_seed(1)
    q = torch.randn(200, 6, SIZE)
    keys, values = torch.randn(2, 2, 200, SIZE)
    whole = BlockedAttention(0).attend(q, keys, values)
    cuts = [0, 1, 63, 64, 130, 200]
    parts = [BlockedAttention(a).attend(q[a:b], keys[:, :b], values[:, :b]) for a, b in itertools.pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
