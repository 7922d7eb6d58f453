import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.execution.engine.cuda_graphs import CudaGraphs
from node.execution.engine.engine import Engine
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.static_decode import DecodeStep, Program, Recorder, StaticDecode, sizes_of
from node.execution.shape import read_shape
from protocol.task import Sampling

CPU = torch.device("cpu")


class FakeGraphs:
    """Runs the steps themselves, with inputs and outputs in memory that stays the same, as a graph's does."""

    def __init__(self) -> None:
        self.recorded: list[int] = []
        self.ran: list[int] = []

    def record(self, step: DecodeStep) -> Program:
        self.recorded.append(step.rows)
        inputs = torch.zeros(3, step.rows, dtype=torch.int64)
        hidden = step(inputs).clone()

        def run(given: Tensor) -> Tensor:
            self.ran.append(step.rows)
            inputs.copy_(given)
            hidden.copy_(step(inputs))
            return hidden

        return run


def jobs(count: int, *, scope: bytes = b"") -> list[Sequence]:
    """Prompts that begin alike, of many lengths; every other answer is sampled."""
    source = random.Random(3)
    made = []
    for request in range(count):
        prompt = [*range(1, 25), *(source.randrange(256) for _ in range(source.randint(1, 20)))]
        made.append(
            Sequence(
                request=request,
                tokens=prompt,
                prompt_tokens=len(prompt),
                tokens_out_max=source.randint(1, 24),
                sampling=Sampling(temperature_milli=900 * (request % 2), top_p_milli=950, seed=request),
                stop_tokens=frozenset({256}),
                scope=scope,
            )
        )
    return made


def answers(model: Llama, graphs: Recorder | None, *, slots: int, scope: bytes = b"") -> list[list[int]]:
    """Return what twelve jobs are answered that arrive one after another; one of them is cancelled."""
    # So patient that no pass depends on how long another one took.
    engine = Engine(model, slots=slots, context_tokens=80, prefill_tokens=30, inter_token_s=1000.0)
    if graphs is not None:
        engine.decode_by(lambda model, cache: StaticDecode(model, cache, graphs))
    every = jobs(12, scope=scope)
    waiting, steps = list(every), 0
    while waiting or not engine.idle:
        if waiting:
            engine.add(waiting.pop(0))
        if steps == 10:
            engine.cancel(1)
        engine.step()
        steps += 1
    return [sequence.tokens[sequence.prompt_tokens :] for sequence in every]


@pytest.mark.slow
@pytest.mark.parametrize("scope", [b"", b"customer"])
def test_answers_are_the_same_through_recorded_steps_with_arrivals_and_reused_prefixes(
    tiny: Llama, scope: bytes
) -> None:
    graphs = FakeGraphs()
    assert answers(tiny, graphs, slots=6, scope=scope) == answers(tiny, None, slots=6, scope=scope)
    assert graphs.recorded == [6, 4, 2, 1]
    # Batches of three and five were padded.
    assert {4, 6} <= set(graphs.ran)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_answers_are_the_same_through_cuda_graphs(tiny_folder: Path) -> None:
    device = torch.device("cuda", 0)
    model = load_llama(tiny_folder, read_shape(tiny_folder), device=device, dtype=torch.float32)
    assert answers(model, CudaGraphs(device), slots=6) == answers(model, None, slots=6)


def test_padding_writes_nothing_that_a_slot_holds(tiny: Llama) -> None:
    cache = KvCache(tiny.shape, slots=4, context_tokens=64, dtype=tiny.dtype, device=CPU)
    cache.held.fill_(7.0)
    decode = StaticDecode(tiny, cache, FakeGraphs())
    cache.held.fill_(7.0)
    running = jobs(3)
    for slot, sequence in enumerate(running):
        sequence.slot, sequence.cached = slot, 10
    with torch.inference_mode():
        hidden = decode.run(running)
    assert hidden is not None and len(hidden) == 3
    changed = (cache.held != 7.0).flatten(4).any(-1).any(0).any(0).nonzero().tolist()
    assert changed == [[0, 10], [1, 10], [2, 10]]


def test_batch_with_a_hole_is_left_to_the_other_path(tiny: Llama) -> None:
    cache = KvCache(tiny.shape, slots=4, context_tokens=64, dtype=tiny.dtype, device=CPU)
    graphs = FakeGraphs()
    decode = StaticDecode(tiny, cache, graphs)
    first, second = jobs(2)
    first.slot, second.slot = 0, 2
    assert decode.run([first, second]) is None and not graphs.ran


@pytest.mark.parametrize(
    ("slots", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_sizes_are_powers_of_two_and_all_slots(slots: int, sizes: tuple[int, ...]) -> None:
    assert sizes_of(slots) == sizes
