from node.execution.memory_plan import (
    CONTEXT_TOKENS_MIN,
    FIXED_BYTES,
    device_budget,
    fit_context,
    fit_slots,
    kv_bytes_per_token,
    plan_model,
)
from node.execution.shape import LlamaShape

SMOLLM2 = LlamaShape(
    layers=30,
    hidden=576,
    feed_forward=1536,
    heads=9,
    kv_heads=3,
    head_size=64,
    vocabulary=49_152,
    context_tokens=8192,
    norm_epsilon=1e-5,
    rope_theta=1e5,
    rope_scaling=None,
    tied_embeddings=True,
    eos_tokens=frozenset({2}),
)
PARAMETERS = 134_515_008
PLAN = plan_model(SMOLLM2, PARAMETERS, dtype="bf16", slots=16, context_tokens=1024, prefill_tokens=2048)


def test_plan_of_a_known_model_has_the_known_figures() -> None:
    # The design's figures: 269 MB of weights, 23 040 bytes for each token, 360 to 377 MB of cache.
    assert kv_bytes_per_token(SMOLLM2, "bf16") == 23_040
    assert PLAN.cache_bytes == 16 * 1024 * 23_040
    embedding = 49_152 * 576 * 2
    assert PLAN.weights_bytes == PARAMETERS * 2 + embedding
    assert kv_bytes_per_token(SMOLLM2, "fp32") == 46_080


def test_plan_that_fits_keeps_its_slots() -> None:
    assert fit_slots(PLAN, PLAN.total_bytes) == PLAN


def test_plan_gives_up_slots_before_it_gives_up_the_model() -> None:
    per_slot = 1024 * 23_040
    smaller = fit_slots(PLAN, PLAN.total_bytes - 1)
    assert smaller is not None
    assert smaller.slots == 15
    assert smaller.total_bytes == PLAN.total_bytes - per_slot
    one = fit_slots(PLAN, PLAN.weights_bytes + PLAN.working_bytes + per_slot)
    assert one is not None and one.slots == 1
    assert fit_slots(PLAN, PLAN.weights_bytes + PLAN.working_bytes + per_slot - 1) is None


def test_budget_is_what_is_free_and_allowed_less_what_torch_takes() -> None:
    gib = 1 << 30
    assert (
        device_budget("cpu", total_bytes=10 * gib, free_bytes=4 * gib, percent=90) == 4 * gib - FIXED_BYTES["cpu"]
    )
    assert (
        device_budget("cuda", total_bytes=10 * gib, free_bytes=10 * gib, percent=50)
        == 5 * gib - FIXED_BYTES["cuda"]
    )
    assert device_budget("cpu", total_bytes=gib, free_bytes=1, percent=90) == 0
    assert (
        device_budget("cpu", total_bytes=10 * gib, free_bytes=10 * gib, percent=90, bytes_max=gib)
        == gib * 90 // 100 - FIXED_BYTES["cpu"]
    )


def test_plan_gives_up_slots_and_then_context_before_it_gives_up_the_model() -> None:
    beside = PLAN.weights_bytes + PLAN.working_bytes
    assert fit_context(PLAN, PLAN.total_bytes) == PLAN
    half = fit_context(PLAN, beside + 512 * 23_040 + 23_039)
    assert half is not None and (half.slots, half.context_tokens) == (1, 512)
    assert half.total_bytes == beside + 512 * 23_040
    least = fit_context(PLAN, beside + CONTEXT_TOKENS_MIN * 23_040)
    assert least is not None and least.context_tokens == CONTEXT_TOKENS_MIN
    assert fit_context(PLAN, beside + CONTEXT_TOKENS_MIN * 23_040 - 1) is None
