"""How much memory a model takes on a device, by arithmetic before anything is loaded. Pure.

Sources: safetensors header for the parameters, ``config.json`` for the rest. Activations and the logits of one
step are bounded by the prefill budget and the slots.
"""

from dataclasses import dataclass, replace
from typing import Final

from node.execution.shape import DecoderShape
from protocol.fields import Dtype

SCORE_ROWS: Final = 32
"""Rows of logits that a check (``engine/score.py``) has at once."""
ATTENTION_ROWS: Final = 64
"""Queries of one block of a prompt's attention on the CPU (``engine/chunk_attention.py``)."""
DECODE_ROWS_MAX: Final = 32
"""Sequences of one compiled decode step: 54 ms against 62 by torch at 32, 125 against 107 at 64."""
_ARRANGED_PADDING, _LINE_BYTES = 32, 64
BYTES_OF: Final[dict[Dtype, int]] = {"fp32": 4, "bf16": 2, "fp16": 2}

# Interpreter and torch: 230 MB on a CPU, and 62 MB of kernels compiled for the shapes they meet. For CUDA,
# context and allocator slack are estimated, not measured: not run on a GPU yet.
FIXED_BYTES: Final = {"cpu": 320 << 20, "cuda": 600 << 20}

# What a device's rates are measured in, where there is so much: caches hold less.
MATMUL_SIDE: Final = {"cpu": 1024, "cuda": 8192}
READ_BYTES: Final = {"cpu": 128 << 20, "cuda": 2 << 30}

# Of a task that makes no text: what a waiting job brings (an input of 1 MiB, as text or bytes, and once more as
# numbers of four bytes), the units that one job may have, and what one step computes with.
JOB_BYTES: Final = 8 << 20
JOB_UNITS_MAX: Final = 1 << 18
STEP_BYTES: Final = 64 << 20

# The least that a model is served with; less holds no conversation.
CONTEXT_TOKENS_MIN: Final = 64


def matmul_bytes(side: int) -> int:
    """Return what two square operands take: drawn in float32, and then once more in the dtype itself."""
    return 3 * 4 * side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes that one model needs to be served with these slots."""

    slots: int
    context_tokens: int
    weights_bytes: int
    cache_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.working_bytes


def kv_bytes_per_token(shape: DecoderShape, dtype: Dtype) -> int:
    """Return what one token of one sequence keeps in the KV cache."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * BYTES_OF[dtype]


def plan_model(
    shape: DecoderShape, parameters: int, *, dtype: Dtype, slots: int, context_tokens: int, prefill_tokens: int
) -> MemoryPlan:
    """Return the plan of a model with ``parameters`` numbers, of which every slot holds a whole context."""
    width = BYTES_OF[dtype]
    head_columns = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    activations = prefill_tokens * width * (2 * shape.hidden + shape.feed_forward_columns + head_columns)
    logits = max(slots, SCORE_ROWS) * shape.vocabulary * (width + 4)
    # A check of somebody's answer keeps keys and values of its own, so that it takes no job's slot.
    score = context_tokens * kv_bytes_per_token(shape, dtype)
    # The CPU path keeps a tied embedding twice: as a table, and packed for the last layer.
    packed_twice = shape.vocabulary * shape.hidden * width if shape.tied_embeddings else 0
    return MemoryPlan(
        slots=slots,
        context_tokens=context_tokens,
        weights_bytes=parameters * width + packed_twice,
        cache_bytes=slots * context_tokens * kv_bytes_per_token(shape, dtype),
        working_bytes=activations + logits + score,
    )


def with_cpu_work(plan: MemoryPlan, shape: DecoderShape, dtype: Dtype, *, decode_threads: int) -> MemoryPlan:
    """Return ``plan`` with what the CPU's own ways to compute need besides.

    ``decode_threads`` are the compiled decode step's (``engine/decode.c``, ``lay_out``); 0 where torch decodes.
    """
    # Scores of a block of a prompt, and what they become.
    block = 2 * ATTENTION_ROWS * shape.heads * plan.context_tokens * BYTES_OF[dtype]
    rows = min(plan.slots, DECODE_ROWS_MAX)
    group, mixed = shape.heads // shape.kv_heads, shape.heads * shape.head_size
    columns = mixed + 2 * shape.kv_heads * shape.head_size
    shared = rows * (4 * shape.hidden + 4 * max(columns, shape.hidden) + 2 * mixed + 10 * shape.feed_forward)
    arranged = max(rows, group) * (max(shape.feed_forward, shape.hidden, mixed) + _ARRANGED_PADDING)
    own = group * (4 * plan.context_tokens + 6 * shape.head_size) + 2 * (rows * shape.hidden + arranged)
    # Each piece begins on a line of its own.
    step = shared + 6 * _LINE_BYTES + decode_threads * (own + 5 * _LINE_BYTES) if decode_threads else 0
    return replace(plan, working_bytes=plan.working_bytes + block + step)


def plan_items(parameters: int, *, slots: int) -> MemoryPlan:
    """Return the plan of a model whose jobs are items, in fp32: it has no cache, its slots are jobs that wait."""
    return MemoryPlan(
        slots=slots,
        context_tokens=JOB_UNITS_MAX,
        weights_bytes=parameters * BYTES_OF["fp32"],
        cache_bytes=slots * JOB_BYTES,
        working_bytes=STEP_BYTES,
    )


def fit_slots(largest: MemoryPlan, budget_bytes: int) -> MemoryPlan | None:
    """Return ``largest`` with as many of its slots as the budget holds, ``None`` when not even one fits."""
    per_slot = largest.cache_bytes // largest.slots
    spare = budget_bytes - largest.weights_bytes - largest.working_bytes
    slots = min(largest.slots, spare // per_slot)
    return None if slots < 1 else with_slots(largest, slots)


def with_slots(plan: MemoryPlan, slots: int) -> MemoryPlan:
    """Return ``plan`` with another number of slots; its working memory stays that of the most."""
    return replace(plan, slots=slots, cache_bytes=plan.cache_bytes // plan.slots * slots)


def fit_context(largest: MemoryPlan, budget_bytes: int) -> MemoryPlan | None:
    """Return ``largest`` as it fits alone: fewer slots first, then one slot with less context.

    ``None`` when not even ``CONTEXT_TOKENS_MIN`` fit.
    """
    if (plan := fit_slots(largest, budget_bytes)) is not None:
        return plan
    per_token = largest.cache_bytes // largest.slots // largest.context_tokens
    spare = budget_bytes - largest.weights_bytes - largest.working_bytes
    tokens = min(spare // per_token, largest.context_tokens) if per_token else 0
    if tokens < CONTEXT_TOKENS_MIN:
        return None
    return replace(largest, slots=1, context_tokens=tokens, cache_bytes=tokens * per_token)


def device_budget(kind: str, *, total_bytes: int, free_bytes: int, percent: int, bytes_max: int = 0) -> int:
    """Return what models may take on a device of which ``percent`` may be filled.

    ``bytes_max``, unless 0, stands in for a device that has more.
    """
    total = min(total_bytes, bytes_max) if bytes_max else total_bytes
    return max(0, min(free_bytes, total * percent // 100) - FIXED_BYTES[kind])
