"""What a device does, measured for a second at start: matrix products, memory reads, one sequence's decoding.

Products and reads do not predict decoding (engines reach 18 to 83 % of the same limit), so all three are measured.
"""

import statistics
import time
from collections.abc import Callable
from typing import Final

import torch

from node.execution.engine.backend import Model, TokenEngine
from node.execution.engine.scheduler import Sequence
from node.execution.memory_plan import MATMUL_SIDE, READ_BYTES, matmul_bytes
from protocol.task import Sampling

WINDOW_S: Final = 0.1
DECODE_S: Final = 0.3
_SIDE_MIN: Final = 128
_READ_BYTES_MIN: Final = 1 << 20
_RUNS_MIN: Final = 3
_WARM_UP_TOKENS: Final = 3
_PROMPT_TOKENS: Final = 16
_DECODE_TOKENS_MAX: Final = 128
_REQUEST: Final = -1


def matmul_gflops(device: torch.device, dtype: torch.dtype, memory_bytes: int) -> int:
    """Return 10⁹ floating-point operations per second of a square product that ``memory_bytes`` hold."""
    side = MATMUL_SIDE[device.type]
    while side > _SIDE_MIN and matmul_bytes(side) > memory_bytes:
        side //= 2
    with torch.inference_mode():
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = _median_s(lambda: a @ a, device)
    return round(2 * side**3 / seconds / 1e9)


def read_mb_per_s(device: torch.device, memory_bytes: int) -> int:
    """Return 10⁶ bytes per second of a streaming read, from more memory than caches hold if there is so much."""
    numbers = max(min(READ_BYTES[device.type], memory_bytes), _READ_BYTES_MIN) // 4
    with torch.inference_mode():
        x = torch.ones(numbers, device=device)
        seconds = _median_s(x.sum, device)
    return round(4 * numbers / seconds / 1e6)


def decode_tokens_per_s_milli(model: Model, engine: TokenEngine) -> int:
    """Return thousandths of tokens per second that one sequence gets; the engine must be idle."""
    assert engine.idle
    tokens = [token % model.shape.vocabulary for token in range(1, _PROMPT_TOKENS + 1)]
    out_max = min(_DECODE_TOKENS_MAX, engine.context_tokens - len(tokens))
    sequence = Sequence(
        request=_REQUEST,
        tokens=tokens,
        prompt_tokens=len(tokens),
        tokens_out_max=out_max,
        sampling=Sampling(),
        stop_tokens=frozenset(),
    )
    engine.add(sequence)
    while sequence.answer_tokens < _WARM_UP_TOKENS:
        engine.step()
    started, before = time.perf_counter(), sequence.answer_tokens
    while not engine.idle and time.perf_counter() - started < DECODE_S:
        engine.step()
    elapsed = time.perf_counter() - started
    engine.cancel(_REQUEST)
    return max(1, round((sequence.answer_tokens - before) * 1000 / elapsed))


def _median_s(run: Callable[[], object], device: torch.device) -> float:
    run()
    _wait(device)
    seconds: list[float] = []
    end = time.perf_counter() + WINDOW_S
    while time.perf_counter() < end or len(seconds) < _RUNS_MIN:
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
