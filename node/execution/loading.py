"""What is loaded on one device: planned by arithmetic, loaded into its worker, measured once.

When a worker is started and what follows its death is ``device_worker.py``'s business.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from node.config import WorkerSection
from node.errors import ExecutionError, ModelError, WorkerDiedError
from node.execution.devices import DeviceChoice, NvmlDevice, read_cpu, report_device
from node.execution.frames import Load, Measure, Measured, Ready
from node.execution.interface import DeviceReport, Dtype, ServedModel
from node.execution.memory_plan import MemoryPlan, device_budget, fit_slots, plan_model
from node.execution.shape import LlamaShape, read_shape
from node.execution.worker_process import WorkerProcess
from node.metrics import Metrics
from protocol.units import ModelId

log = logging.getLogger(__name__)

# A hundred gigabytes from a disk that reads 200 MB/s.
LOAD_S_MAX: Final = 600.0
# A pass of a full batch takes 0.2 s here; on a machine that swaps it has taken 20 s.
SILENCE_S_MAX: Final = 60.0
# Prompt tokens in one pass: others wait 0.2 s for it on a CPU of two cores. The figure for CUDA is taken from
# the literature: not run on a GPU yet.
_PREFILL_TOKENS: Final = {"cpu": 128, "cuda": 2048}


class LocalModel(Protocol):
    """What execution needs to know of a model on the disk; ``node.models.store.StoredModel`` is one."""

    @property
    def model_id(self) -> ModelId: ...

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def parameters(self) -> int: ...

    def verify(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSetup:
    """Everything that stays the same over the restarts of one device's worker."""

    choice: DeviceChoice
    config: WorkerSection
    threads: int
    models: tuple[LocalModel, ...]
    nvml: tuple[NvmlDevice, ...]
    environment: dict[str, str]
    metrics: Metrics
    silence_s_max: float = SILENCE_S_MAX


class ModelLoader:
    """Loads models into the worker of one device, and remembers what was measured over the worker's deaths."""

    def __init__(self, setup: DeviceSetup) -> None:
        self._setup = setup
        self._measured: dict[ModelId, Measured] = {}

    async def load_all(self, process: WorkerProcess, ready: Ready) -> tuple[DeviceReport, tuple[ServedModel, ...]]:
        """Load what fits, in the order given; return the device as found, and what is served.

        A model that fails is logged and left out.

        Raises:
            WorkerDiedError: the worker died meanwhile.
        """
        cpu = await trio.to_thread.run_sync(read_cpu)
        report = report_device(self._setup.choice, ready, nvml=self._setup.nvml, cpu=cpu, measured=None)
        budget = device_budget(
            report.kind,
            total_bytes=report.memory_total_bytes,
            free_bytes=report.memory_free_bytes,
            percent=self._setup.config.memory_percent,
        )
        served: list[ServedModel] = []
        for model in self._setup.models:
            try:
                entry = await self._load_one(process, ready, model, budget_bytes=budget)
            except WorkerDiedError:
                raise
            except (ModelError, ExecutionError) as exc:
                log.warning("model left out", extra={"model": model.name, "cause": str(exc)})
                continue
            served.append(entry)
            budget -= entry.memory_bytes
        # The rates in the dtype that is served first; a device that serves nothing is not measured.
        measured = self._measured[served[0].model_id] if served else None
        report = report_device(self._setup.choice, ready, nvml=self._setup.nvml, cpu=cpu, measured=measured)
        return report, tuple(served)

    async def _load_one(
        self, process: WorkerProcess, ready: Ready, model: LocalModel, *, budget_bytes: int
    ) -> ServedModel:
        """Plan, load and measure one model.

        Raises:
            ModelError, ExecutionError: it cannot be served here; the message says why.
        """
        shape = await trio.to_thread.run_sync(read_shape, model.folder)
        dtype = choose_dtype(self._setup.config.dtype, ready.dtypes)
        plan = self._plan(model, shape, dtype, budget_bytes)
        with process.open_request(1, silence_s_max=LOAD_S_MAX) as request:
            load = Load(
                request=request.number,
                model=model.model_id,
                folder=str(model.folder),
                dtype=dtype,
                slots=plan.slots,
                context_tokens=plan.context_tokens,
                prefill_tokens=_PREFILL_TOKENS[self._setup.choice.kind],
            )
            await request.send(load)
            await request.receive()
        if model.model_id not in self._measured:
            self._measured[model.model_id] = await _measure(process, model.model_id)
        return ServedModel(
            model_id=model.model_id,
            name=model.name,
            task=model.task,
            dtype=dtype,
            device=self._setup.choice.name,
            context_tokens=plan.context_tokens,
            tokens_per_s_milli=self._measured[model.model_id].tokens_per_s_milli,
            memory_bytes=plan.total_bytes,
            slots=plan.slots,
            profile=f"{ready.runtime}; {self._setup.choice.kind} {ready.architecture}; {dtype}; sdpa",
        )

    def _plan(self, model: LocalModel, shape: LlamaShape, dtype: Dtype, budget_bytes: int) -> MemoryPlan:
        largest = plan_model(
            shape,
            model.parameters,
            dtype=dtype,
            slots=self._setup.config.slots,
            context_tokens=min(self._setup.config.context_tokens_max, shape.context_tokens),
            prefill_tokens=_PREFILL_TOKENS[self._setup.choice.kind],
        )
        plan = fit_slots(largest, budget_bytes)
        if plan is None:
            per_slot = largest.cache_bytes // largest.slots
            raise ExecutionError(
                f"expected {largest.weights_bytes + largest.working_bytes + per_slot} bytes for weights, work and "
                f"one slot of {largest.context_tokens} tokens, {self._setup.choice.name} has {budget_bytes} left",
                code="memory",
            )
        return plan


async def _measure(process: WorkerProcess, model_id: ModelId) -> Measured:
    with process.open_request(1) as request:
        await request.send(Measure(request=request.number, model=model_id))
        answer = await request.receive()
    assert isinstance(answer, Measured)
    return answer


def choose_dtype(wanted: str, offered: tuple[Dtype, ...]) -> Dtype:
    """Return the dtype to serve in: the device's best one, or the one that the configuration names.

    Raises:
        ExecutionError: ``dtype``: the device does not compute in it.
    """
    if wanted == "auto":
        return offered[0]
    for dtype in offered:
        if dtype == wanted:
            return dtype
    raise ExecutionError(f"expected one of {', '.join(offered)} on this device, got {wanted!r}", code="dtype")
