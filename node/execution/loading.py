"""What is loaded on one device: planned by arithmetic, loaded into its worker when wanted, measured once.

When a worker is started and what follows its death is ``device_worker.py``'s business.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from node.config import WorkerSection
from node.errors import ExecutionError, ModelError, WorkerDiedError
from node.execution.bubblewrap import Bubblewrap
from node.execution.devices import DeviceChoice, NvmlDevice, read_cpu, report_device
from node.execution.energy import EnergyBook, device_counter
from node.execution.frames import COMPILED, SDPA, Load, Loaded, Ready, Unload
from node.execution.interface import DeviceReport, ServedModel
from node.execution.inventory import DeviceNow
from node.execution.job_meter import JobMeter
from node.execution.measurements import Delivered, DeviceRates, Measurements
from node.execution.measuring import measure_model, measure_rates
from node.execution.memory_plan import (
    FIXED_BYTES,
    MemoryPlan,
    device_budget,
    fit_context,
    fit_slots,
    with_slots,
)
from node.execution.model_fit import (
    PREFILL_TOKENS,
    VLLM,
    Fit,
    LocalModel,
    choose_dtype,
    fit_model,
    vllm_use,
)
from node.execution.residency import MEMORY, Residency
from node.execution.seats import Seats
from node.execution.worker_process import Request, WorkerProcess
from node.execution.worker_rules import WorkerRules
from node.metrics import Metrics
from protocol.profile import Profile
from protocol.task import GENERATE
from protocol.units import ModelId

log = logging.getLogger(__name__)

# A hundred gigabytes from a disk that reads 200 MB/s.
LOAD_S_MAX: Final = 600.0


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
    rules: WorkerRules
    measurements: Measurements = field(default_factory=Measurements)
    readable: tuple[str, ...] = ()
    """Folders that a worker in the jail may read beside its own libraries: where models lie."""
    decode_library: Path | None = None
    """The compiled decode step (``decode_library.py``); None: torch decodes."""
    bubblewrap: Bubblewrap = field(default_factory=Bubblewrap)
    """What starts its workers, and those of all devices beside it."""


class ModelLoader:
    """What one device should serve, and what was measured there; outlives its workers."""

    def __init__(self, setup: DeviceSetup) -> None:
        self.setup = setup
        self.wanted = {model.model_id: model for model in setup.models}
        self.delivered: defaultdict[ModelId, Delivered] = defaultdict(Delivered)
        self.kernels: dict[ModelId, str] = {}
        """What computed a model when it was loaded last."""

    async def load_all(self, process: WorkerProcess, ready: Ready) -> "DeviceModels":
        """Load the wanted models, pinned ones first; a model that fails is logged and left out.

        Raises:
            WorkerDiedError: the worker died meanwhile.
        """
        cpu = await trio.to_thread.run_sync(read_cpu)
        setup = self.setup
        report = report_device(setup.choice, ready, nvml=setup.nvml, cpu=cpu, measured=None)
        budget = device_budget(
            report.kind,
            total_bytes=report.memory_total_bytes,
            free_bytes=report.memory_free_bytes,
            percent=setup.config.memory_percent,
            bytes_max=setup.config.memory_bytes_max,
        )
        self._recall(ready, report)
        rates = await self._measure_device(process, ready, budget) if self.wanted else None
        models = DeviceModels(self, process, ready, Residency(budget))
        pinned = setup.config.pinned
        for model in sorted(self.wanted.values(), key=lambda model: model.name not in pinned):
            try:
                await models.load_at_start(model)
            except WorkerDiedError:
                raise
            except (ModelError, ExecutionError) as exc:
                log.warning("model left out", extra={"model": model.name, "cause": str(exc)})
        models.report = report_device(setup.choice, ready, nvml=setup.nvml, cpu=cpu, measured=rates)
        await trio.to_thread.run_sync(setup.measurements.write)
        return models

    def _recall(self, ready: Ready, report: DeviceReport) -> None:
        setup = self.setup
        conditions = (
            report.name,
            ready.uuid or "",
            report.architecture,
            f"driver {report.driver}",
            ready.runtime,
            choose_dtype(setup.config.dtype, ready.dtypes),
            f"{setup.threads} threads",
            *((f"vllm on {setup.choice.cards}",) if setup.config.vllm_python else ()),
            *((setup.decode_library.stem,) if setup.decode_library else ()),
        )
        setup.measurements.under(setup.choice.name, "; ".join(conditions))

    async def _measure_device(self, process: WorkerProcess, ready: Ready, budget_bytes: int) -> DeviceRates:
        """Return the device's rates, measured now unless they are known; a full device leaves no room for it."""
        setup = self.setup
        if (known := setup.measurements.rates(setup.choice.name)) is not None:
            return known
        rates = await measure_rates(process, choose_dtype(setup.config.dtype, ready.dtypes), budget_bytes)
        setup.measurements.keep_rates(setup.choice.name, rates)
        return rates

    def speed(self, model_id: ModelId) -> int | None:
        """Return a model's measured thousandths of tokens per second."""
        return self.setup.measurements.tokens_per_s_milli(self.setup.choice.name, model_id)


class DeviceModels:
    """The models of one living worker: those that are loaded, and those that will be when somebody asks."""

    def __init__(self, loader: ModelLoader, process: WorkerProcess, ready: Ready, residency: Residency) -> None:
        self._loader, self._process, self._ready = loader, process, ready
        self._residency = residency
        self._entries: dict[ModelId, ServedModel] = {}
        self._fits: dict[ModelId, Fit] = {}
        self._seats: dict[ModelId, Seats] = {}
        self._energy = EnergyBook(device_counter(loader.setup.choice.kind, ready.uuid, trio.current_time))
        # One at a time: each decision about memory rests on the one before.
        self._loading = trio.Lock()
        self.report: DeviceReport | None = None

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """What this device answers with."""
        return tuple(
            replace(
                it if it.model_id in self._residency else self._unloaded(it),
                is_loaded=it.model_id in self._residency,
                tokens_held=self._seats[it.model_id].tokens_held if it.model_id in self._seats else 0,
                delivered_tokens_per_s_milli=self._loader.delivered[it.model_id].tokens_per_s_milli,
            )
            for it in self._entries.values()
        )

    def _unloaded(self, entry: ServedModel) -> ServedModel:
        """Return what a model would be, were it loaded now."""
        fit, residency = self._fits[entry.model_id], self._residency
        plan = fit_context(fit.largest, residency.budget_bytes - residency.pinned_bytes)
        if plan is None:
            return replace(entry, lacks="memory")
        is_free = with_slots(plan, 1).total_bytes <= residency.budget_bytes - residency.kept_bytes
        return replace(self._entry(fit, plan), lacks=None if is_free else "jobs")

    async def follow(self, now: DeviceNow) -> None:
        """Keep to the memory that other programs leave: idle models make room, and come back when it does.

        Raises:
            WorkerDiedError: the worker died meanwhile.
        """
        assert self.report is not None
        if now.memory_free_bytes is None:
            return
        config, report, residency = self._loader.setup.config, self.report, self._residency
        own = now.own_bytes
        if own is None:
            own = residency.budget_bytes - residency.free_bytes + FIXED_BYTES[report.kind]
        budget = device_budget(
            report.kind,
            total_bytes=report.memory_total_bytes,
            free_bytes=now.memory_free_bytes + own,
            percent=config.memory_percent,
            bytes_max=config.memory_bytes_max,
        )
        before = residency.budget_bytes
        has_changed = abs(budget - before) > self._loader.setup.rules.memory_step_bytes
        if self._loading.locked() or not (has_changed or residency.free_bytes < 0):
            # A load rests on the budget as it was when it began; the next look comes soon.
            return
        async with self._loading:
            if has_changed:
                extra = {"device": self._loader.setup.choice.name, "before_bytes": before}
                log.info("memory for models changed", extra={**extra, "now_bytes": budget})
                residency.budget_bytes = budget
            # Asked for each time: jobs come and go while one is unloaded.
            while residency.free_bytes < 0 and (idle := residency.idle()):
                await self._unload(idle[0])
        if has_changed and budget > before:
            await self.load_missing()

    async def load_missing(self) -> None:
        """Serve what is wanted and not served; a model that fails is logged and left out.

        Raises:
            WorkerDiedError: the worker died meanwhile.
        """
        for model_id, model in tuple(self._loader.wanted.items()):
            try:
                if model_id not in self._entries and model_id in self._loader.wanted:
                    await self.load_at_start(model)
            except WorkerDiedError:
                raise
            except (ModelError, ExecutionError) as exc:
                log.warning("model left out", extra={"model": model.name, "cause": str(exc)})

    def count_energy(self, model_id: ModelId, millijoules: int | None) -> None:
        """Show what a job took; one whose energy is unknown counts nowhere."""
        setup, entry = self._loader.setup, self._entries.get(model_id)
        if millijoules is not None and entry is not None:
            setup.metrics.job_energy(setup.choice.name, entry.name, millijoules)

    @contextmanager
    def meter(self, model_id: ModelId, tokens_in: int) -> Iterator["JobMeter"]:
        """Meter a job of ``model_id`` from its start to its end, whatever that is."""
        meter = JobMeter(self._energy, self._loader.delivered[model_id], tokens_in)
        try:
            with self._seats[model_id].hold(meter):
                yield meter
        finally:
            meter.end()

    @contextmanager
    def use(self, model_id: ModelId) -> Iterator[None]:
        """Keep a loaded model where it is; between ``load`` and this nothing may be awaited."""
        self._residency.begin_use(model_id)
        try:
            yield
        finally:
            self._residency.end_use(model_id)

    def open_request(self, events_max: int) -> Request:
        """Return a request to the worker that has these models, whichever serves by now.

        Raises:
            WorkerDiedError: that one is gone.
        """
        return self._process.open_request(events_max)

    @property
    def free_bytes(self) -> int:
        """What no model takes."""
        return self._residency.free_bytes

    def is_loaded(self, model_id: ModelId) -> bool:
        return model_id in self._residency

    async def load(self, model: LocalModel) -> ServedModel:
        """Load ``model`` unless it is there, after unloading what is in the way.

        Raises:
            ModelError, ExecutionError: it cannot be served here now; the code and the message say why.
            WorkerDiedError: the worker died meanwhile.
        """
        if model.model_id in self._residency:
            return self._entries[model.model_id]
        async with self._loading:
            if model.model_id not in self._residency:
                fit = await self._fit(model)
                alone = self._alone(fit)
                plan = fit_slots(alone, self._residency.free_bytes)
                if plan is None:
                    for victim in self._residency.victims(with_slots(alone, 1).total_bytes):
                        await self._unload(victim)
                    plan = fit_slots(alone, self._residency.free_bytes)
                    assert plan is not None
                await self._load(fit, plan)
            return self._entries[model.model_id]

    async def load_at_start(self, model: LocalModel) -> None:
        """As ``load``; but one that was measured before and finds no room waits for its first job."""
        if self._loader.speed(model.model_id) is not None:
            fit = await self._fit(model)
            # Another program's version stands in the profile, which a quote and its receipt must both say.
            is_known = fit.attention in (SDPA, COMPILED) or model.model_id in self._loader.kernels
            alone = self._alone(fit)
            if is_known and fit_slots(alone, self._residency.free_bytes) is None:
                self._note(fit, alone)
                return
        await self.load(model)

    async def unload(self, model_id: ModelId) -> None:
        """Serve a model no more and free its memory.

        Raises:
            ExecutionError: ``model_busy``: jobs use it.
            WorkerDiedError: the worker died meanwhile.
        """
        async with self._loading:
            if model_id in self._residency:
                await self._unload(model_id)
            self._entries.pop(model_id, None)

    async def _fit(self, model: LocalModel) -> Fit:
        setup = self._loader.setup
        threads = setup.threads if setup.decode_library is not None else 0
        fit = partial(
            fit_model, model, setup.config, setup.choice.kind, self._ready.dtypes, decode_threads=threads
        )
        return await trio.to_thread.run_sync(fit)

    def _alone(self, fit: Fit) -> MemoryPlan:
        """Return the plan of a model as if it were alone beside the pinned ones. Raises: ExecutionError."""
        budget = self._residency.budget_bytes - self._residency.pinned_bytes
        alone = fit_context(fit.largest, budget)
        if alone is None:
            raise ExecutionError(
                f"expected {with_slots(fit.largest, 1).total_bytes} bytes for weights, work and one slot of "
                f"{fit.largest.context_tokens} tokens, {self._loader.setup.choice.name} has {budget} beside what "
                "is pinned",
                code=MEMORY,
            )
        return alone

    async def _load(self, fit: Fit, plan: MemoryPlan) -> None:
        model_id = fit.model.model_id
        # Shielded: half a load would lie in the worker's memory, and in nobody's books.
        with trio.CancelScope(shield=True):
            with self._process.open_request(1, silence_s_max=LOAD_S_MAX) as request:
                config = self._loader.setup.config
                load = Load(
                    request=request.number,
                    model=model_id,
                    folder=str(fit.model.folder),
                    dtype=fit.dtype,
                    slots=plan.slots,
                    context_tokens=plan.context_tokens,
                    prefill_tokens=PREFILL_TOKENS[self._loader.setup.choice.kind],
                    inter_token_ms=config.inter_token_ms,
                    task=fit.task,
                    # The kernel would hold vLLM's processes to it as well, each by itself.
                    memory_bytes_max=0 if config.vllm_python else config.memory_bytes_max,
                    vllm=vllm_use(config, self._loader.setup.choice) if fit.attention == VLLM else None,
                    cuda_graphs=config.cuda_graphs,
                    decode_library=str(self._loader.setup.decode_library) if fit.attention == COMPILED else "",
                )
                began = trio.current_time()
                await request.send(load)
                answer = await request.receive()
            assert isinstance(answer, Loaded)
            self._loader.setup.metrics.model_loaded(fit.model.name, trio.current_time() - began)
            self._loader.kernels[model_id] = answer.kernels
            try:
                await self._measure_once(model_id)
            except WorkerDiedError:
                raise
            except ExecutionError:
                # Its memory would be in nobody's books, and a second load of it beside the first.
                await self._ask_to_unload(model_id)
                raise
            self._seats[model_id] = Seats(plan.slots, self._queue_counter(fit))
            # Both at once: whoever finds it loaded finds its entry.
            is_pinned = fit.model.name in config.pinned
            self._residency.add(model_id, plan.total_bytes, is_pinned=is_pinned)
            self._note(fit, plan)
        log.info("model loaded", extra={"model": fit.model.name, "device": self._loader.setup.choice.name})

    async def _measure_once(self, model_id: ModelId) -> None:
        """Measure a model that never was. Raises: ExecutionError, WorkerDiedError."""
        if self._loader.speed(model_id) is None:
            speed = (await measure_model(self._process, model_id)).tokens_per_s_milli
            setup = self._loader.setup
            setup.measurements.keep_tokens_per_s_milli(setup.choice.name, model_id, speed)

    def _queue_counter(self, fit: Fit) -> Callable[[float], None]:
        """Return what a job's wait for a slot is told to; items of other tasks than text share each step."""
        metrics, name = self._loader.setup.metrics, fit.model.name
        return partial(metrics.job_queued, name) if fit.task == GENERATE else lambda _waited_s: None

    async def _unload(self, model_id: ModelId) -> None:
        with trio.CancelScope(shield=True):
            self._residency.remove(model_id)
            self._seats.pop(model_id, None)
            await self._ask_to_unload(model_id)
        name = self._entries[model_id].name
        log.info("model unloaded", extra={"model": name, "device": self._loader.setup.choice.name})

    async def _ask_to_unload(self, model_id: ModelId) -> None:
        with self._process.open_request(1, silence_s_max=LOAD_S_MAX) as request:
            await request.send(Unload(request=request.number, model=model_id))
            await request.receive()

    def _note(self, fit: Fit, plan: MemoryPlan) -> None:
        self._fits[fit.model.model_id] = fit
        self._entries[fit.model.model_id] = self._entry(fit, plan)

    def _entry(self, fit: Fit, plan: MemoryPlan) -> ServedModel:
        choice = self._loader.setup.choice
        speed = self._loader.speed(fit.model.model_id)
        assert speed is not None
        return ServedModel(
            model_id=fit.model.model_id,
            name=fit.model.name,
            task=fit.task,
            dtype=fit.dtype,
            device=choice.name,
            context_tokens=plan.context_tokens,
            tokens_per_s_milli=speed,
            memory_bytes=plan.total_bytes,
            slots=plan.slots,
            profile=self._profile(fit).label,
            cache_bytes_per_token=fit.cache_bytes_per_token,
            # A job of items has no cache that grows, but what it brings along.
            fixed_bytes=plan.total_bytes - (plan.cache_bytes if fit.cache_bytes_per_token else 0),
            is_context_cut=plan.context_tokens < fit.largest.context_tokens,
        )

    def _profile(self, fit: Fit) -> Profile:
        kernels = self._loader.kernels.get(fit.model.model_id, fit.attention)
        is_own = fit.attention == VLLM
        runtime, _, version = (kernels if is_own else self._ready.runtime).partition(" ")
        return Profile(
            runtime=runtime,
            version=version,
            device=self._loader.setup.choice.kind,
            architecture=self._ready.architecture,
            cards=self._loader.setup.choice.cards,
            dtype=fit.dtype,
            kernels="paged" if is_own else kernels,
            sampler="own" if is_own else "spec",
        )
