import dataclasses
import hashlib
from collections.abc import Sequence as Items
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.execution.decode_library import compile_decode
from node.execution.engine.attention import StepAttention
from node.execution.engine.compiled_decode import CompiledDecode
from node.execution.engine.engine import Engine
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama
from node.execution.engine.scheduler import Plan, Sequence
from node.execution.memory_plan import DECODE_ROWS_MAX, plan_model, with_cpu_work
from node.execution.shape import LlamaShape
from protocol.task import Sampling

CPU = torch.device("cpu")
BF16 = torch.bfloat16
CONTEXT = 96
PLAIN = LlamaShape(
    layers=3, hidden=96, feed_forward=160, heads=6, kv_heads=2, head_size=32, vocabulary=200,
    context_tokens=CONTEXT, tied_embeddings=True, eos_tokens=frozenset(), norm_epsilon=1e-5, rope_theta=1e4,
    rope_scaling=None,
)  # fmt: skip
SHAPES = {
    "vectors": PLAIN,
    # Nothing is a whole number of vectors, and one key head has more query heads than a block.
    "remainders": dataclasses.replace(PLAIN, hidden=44, feed_forward=77, heads=9, kv_heads=1, head_size=10),
    "no groups": dataclasses.replace(PLAIN, kv_heads=6),
    "qwen 2": dataclasses.replace(PLAIN, qkv_bias=True),
    "qwen 3": dataclasses.replace(PLAIN, qk_norm="head"),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_decode(tmp_path_factory.mktemp("compiled"))


def make_model(shape: LlamaShape, dtype: torch.dtype = BF16) -> Llama:
    """Return a model of random weights, the same for each dtype."""

    def weights(name: str, *size: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
        noise = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
        scaled = 1 + noise / 4 if name.endswith("norm.weight") else noise / size[-1] ** 0.5
        return scaled.to(BF16).to(dtype)

    return Llama(shape, weights, device=CPU, dtype=dtype, plain_layers=True)


def filled_cache(model: Llama, slots: int) -> KvCache:
    cache = KvCache(model.shape, slots=slots, context_tokens=CONTEXT, dtype=model.dtype, device=CPU)
    noise = torch.randn(cache.rows.shape, generator=torch.Generator().manual_seed(1))
    cache.rows.copy_(noise.to(BF16))
    return cache


def running(count: int, slots: list[int] | None = None) -> list[Sequence]:
    """Return sequences of many lengths: empty, of one vector and a bit, and full but for one token."""
    made = []
    for i in range(count):
        cached = (CONTEXT - 1, 0, 33, 7, 64, 5, 18, 90)[i % 8]
        tokens = [(31 * i + 7 * j) % 200 for j in range(cached + 1)]
        sequence = Sequence(
            request=i,
            tokens=tokens,
            prompt_tokens=cached,
            tokens_out_max=1,
            sampling=Sampling(),
            stop_tokens=frozenset(),
        )
        sequence.slot, sequence.cached = slots[i] if slots else i, cached
        made.append(sequence)
    return made


def by_torch(model: Llama, cache: KvCache, decodes: list[Sequence]) -> Tensor:
    attention = StepAttention(Plan(decodes=tuple(decodes), chunks=()), cache, CPU)
    tokens = torch.tensor([sequence.tokens[-1] for sequence in decodes])
    positions = torch.tensor([sequence.cached for sequence in decodes])
    with torch.inference_mode():
        return model.forward(tokens, positions, attention.attend)


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize("name", SHAPES)
def test_step_is_as_close_to_float32_as_torchs_own(library: Path, name: str, count: int) -> None:
    shape, decodes = SHAPES[name], running(count)
    exact, model = make_model(shape, torch.float32), make_model(shape)
    caches = [filled_cache(exact, count), filled_cache(model, count), filled_cache(model, count)]
    expected = by_torch(exact, caches[0], decodes)
    eager = by_torch(model, caches[1], decodes)
    compiled = CompiledDecode(library, model, caches[2]).run(decodes)
    assert compiled is not None
    for got, by_eager, right in (
        (compiled, eager, expected),
        (caches[2].rows, caches[1].rows, caches[0].rows),
    ):
        error = (got.float() - right).norm() / right.norm()
        assert error <= 1.2 * (by_eager.float() - right).norm() / right.norm() < 0.02


def test_step_writes_one_row_of_each_sequence_and_nothing_else(library: Path) -> None:
    model = make_model(PLAIN)
    cache, decodes = filled_cache(model, 5), running(3, slots=[0, 2, 3])
    before = cache.held.clone()
    assert CompiledDecode(library, model, cache).run(decodes) is not None
    changed = (cache.held != before).flatten(4).any(-1).any(0).any(0).nonzero().tolist()
    assert changed == [[0, CONTEXT - 1], [2, 0], [3, 33]]


def test_states_of_a_sequence_do_not_depend_on_its_batch_nor_on_threads(library: Path) -> None:
    model, decodes = make_model(PLAIN), running(11)
    together = CompiledDecode(library, model, filled_cache(model, 11)).run(decodes)
    assert together is not None
    for i, sequence in enumerate(decodes):
        alone = CompiledDecode(library, model, filled_cache(model, 11)).run([sequence])
        assert alone is not None and torch.equal(alone[0], together[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        by_three = CompiledDecode(library, model, filled_cache(model, 11)).run(decodes)
    finally:
        torch.set_num_threads(threads)
    assert by_three is not None and torch.equal(by_three, together)


@pytest.mark.parametrize(
    ("token", "cached", "slot"), [(200, 3, 0), (-1, 3, 0), (5, CONTEXT, 0), (5, -1, 1), (5, 3, -1), (5, 3, 2)]
)
def test_input_outside_model_or_cache_is_refused_before_anything_is_written(
    library: Path, token: int, cached: int, slot: int
) -> None:
    model, decodes = make_model(PLAIN), running(2)
    cache = filled_cache(model, 2)
    before = cache.rows.clone()
    decodes[1].tokens[-1], decodes[1].cached, decodes[1].slot = token, cached, slot
    with pytest.raises(AssertionError, match="sequence 2 of 2 is outside"):
        CompiledDecode(library, model, cache).run(decodes)
    assert torch.equal(cache.rows, before)


def test_larger_batch_is_left_to_torch(library: Path) -> None:
    model = make_model(PLAIN)
    decode = CompiledDecode(library, model, filled_cache(model, DECODE_ROWS_MAX + 1))
    assert decode.run(running(DECODE_ROWS_MAX + 1)) is None
    assert decode.run(running(DECODE_ROWS_MAX)) is not None


def test_engine_decodes_by_it_and_reads_prompts_by_torch(library: Path) -> None:
    model = make_model(PLAIN)
    engine = Engine(model, slots=3, context_tokens=CONTEXT, prefill_tokens=CONTEXT)
    counts = []

    class Counted(CompiledDecode):
        def run(self, decodes: Items[Sequence]) -> Tensor | None:
            counts.append(len(decodes))
            return super().run(decodes)

    engine.decode_by(partial(Counted, library))
    for sequence in running(3, slots=[0, 1, 2])[1:]:
        sequence.slot, sequence.cached, sequence.tokens_out_max = -1, 0, 6
        sequence.prompt_tokens = len(sequence.tokens)
        engine.add(sequence)
    chosen = []
    while not engine.idle:
        chosen += engine.step()
    assert [it.request for it in chosen if it.finish == "length"] == [1, 2] and len(chosen) == 12
    # The first token of each comes from its prompt.
    assert counts == [2] * 5


@pytest.mark.parametrize("threads", [1, 7])
@pytest.mark.parametrize("slots", [1, 5, DECODE_ROWS_MAX + 8])
@pytest.mark.parametrize("name", SHAPES)
def test_plan_holds_what_a_step_needs(library: Path, name: str, slots: int, threads: int) -> None:
    shape = SHAPES[name]
    plan = plan_model(shape, 1, dtype="bf16", slots=slots, context_tokens=CONTEXT, prefill_tokens=64)
    planned = [with_cpu_work(plan, shape, "bf16", decode_threads=it).working_bytes for it in (threads, 0)]
    model, before = make_model(shape), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        step = CompiledDecode(library, model, filled_cache(model, slots))
    finally:
        torch.set_num_threads(before)
    assert 0 <= planned[0] - planned[1] - step.memory_bytes < 8192


@pytest.mark.parametrize("is_aligned", [True, False])
def test_cache_begins_on_a_line_where_the_step_reads_it(is_aligned: bool) -> None:
    for slots in (1, 3, 8):
        cache = KvCache(PLAIN, slots=slots, context_tokens=CONTEXT, dtype=BF16, device=CPU, is_aligned=is_aligned)
        assert cache.rows.data_ptr() % 64 == (0 if is_aligned else 16)
        assert not cache.rows.any()
