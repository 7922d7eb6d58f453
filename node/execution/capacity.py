"""What a device does now, measured again by the engine's own code, beside what is advertised of it.

On a device that has nothing else to do: matrix products and memory reads, where the models leave the memory that
they are measured in at a start, and one sequence's decoding, run after run, each as ``engine/measure.py`` does it.
"""

import statistics
from dataclasses import dataclass
from typing import Protocol

import trio

from node.errors import ExecutionError
from node.execution.interface import DeviceReport, ServedModel
from node.execution.loading import DeviceModels
from node.execution.measuring import measure_model, measure_rates
from node.execution.memory_plan import MATMUL_SIDE, READ_BYTES, matmul_bytes
from node.execution.residency import DEVICE_BUSY
from node.execution.worker_process import WorkerProcess
from protocol.units import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one device and one model on it; ``None`` where nothing is known."""

    tokens_per_s_milli: int | None
    """Of one sequence; of another task than text, units in."""
    matmul_gflops: int | None
    read_mb_per_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """One measurement."""

    model: ServedModel
    runs: tuple[int, ...]
    """Thousandths of tokens per second of each run; their median stands in ``measured``."""
    measured: Figures
    advertised: Figures
    was_cut: bool
    """A job came, and the measuring ended for it."""


class Measurable(Protocol):
    """Of ``DeviceWorker``, what is needed here."""

    report: DeviceReport | None

    @property
    def process(self) -> WorkerProcess: ...

    async def load_again(self, model_id: ModelId) -> DeviceModels: ...


async def measure_capacity(worker: Measurable, model: ServedModel, duration_s: float) -> Capacity:
    """Measure for about ``duration_s``, a run at least; a job that comes waits for one run and ends the rest.

    Raises:
        ExecutionError: ``device_busy``: jobs run there, or are prepared.
        WorkerDiedError: the worker is gone; another is being started.
    """
    _refuse_busy(worker)
    models = await worker.load_again(model.model_id)
    began, runs, was_cut = trio.current_time(), list[int](), False
    with models.use(model.model_id):
        _refuse_busy(worker)
        matmul, read = await _rates(worker, model, models.free_bytes)
        while not runs or trio.current_time() - began < duration_s:
            try:
                _refuse_busy(worker)
                runs.append((await measure_model(worker.process, model.model_id)).tokens_per_s_milli)
            except ExecutionError as exc:
                if exc.code != DEVICE_BUSY or not runs:
                    raise
                was_cut = True
                break
    report = worker.report
    return Capacity(
        model=model,
        runs=tuple(runs),
        measured=Figures(
            tokens_per_s_milli=round(statistics.median(runs)),
            matmul_gflops=matmul,
            read_mb_per_s=read,
        ),
        advertised=Figures(
            tokens_per_s_milli=model.tokens_per_s_milli,
            matmul_gflops=None if report is None else report.matmul_gflops,
            read_mb_per_s=None if report is None else report.read_mb_per_s,
        ),
        was_cut=was_cut,
    )


async def _rates(worker: Measurable, model: ServedModel, free_bytes: int) -> tuple[int | None, int | None]:
    """Return products and reads; None where ``free_bytes`` are less than at a start.

    In less memory it would be the caches that are measured, or the start of each product.
    """
    assert worker.report is not None, "its worker serves"
    kind = worker.report.kind
    if free_bytes < matmul_bytes(MATMUL_SIDE[kind]):
        return None, None
    rates = await measure_rates(worker.process, model.dtype, free_bytes)
    return rates.matmul_gflops, rates.read_mb_per_s if free_bytes >= READ_BYTES[kind] else None


def _refuse_busy(worker: Measurable) -> None:
    if jobs := worker.process.jobs:
        raise ExecutionError(
            f"{jobs} {'job is' if jobs == 1 else 'jobs are'} at work on this device: what it does alone cannot "
            "be measured now",
            code=DEVICE_BUSY,
        )
