"""One device and the workers that serve it: another one after each death, a spare beside it, a pause and a probe
when deaths repeat.

One process is ``worker_process.py``, what it loads ``loading.py``; when to try again is decided by
``quarantine.py``; jobs find their device in ``pool.py``.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Final

import trio
from trio import TaskStatus

from node.errors import ExecutionError, ModelError, WorkerDiedError
from node.execution.devices import DeviceChoice, read_cpu
from node.execution.frames import Ready, Setup
from node.execution.interface import DeviceReport, ServedModel
from node.execution.inventory import DeviceNow
from node.execution.jail import Jail
from node.execution.loading import DeviceModels, DeviceSetup, ModelLoader
from node.execution.measuring import measure_model, probe_device
from node.execution.memory_plan import FIXED_BYTES, device_budget
from node.execution.model_fit import LocalModel
from node.execution.quarantine import Quarantine
from node.execution.spawn import WorkerLimits
from node.execution.watchdog import resident_bytes
from node.execution.worker_process import WorkerProcess
from node.execution.worker_state import Life, Spare, WorkerState
from protocol.units import ModelId

log = logging.getLogger(__name__)

START_S_MAX: Final = 120.0
_VLLM_UNJAILED: Final = "vLLM's server needs sockets and programs"


class Changes:
    """Tells who waits that what is served has changed."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def announce(self) -> None:
        """Wake everybody who waits now."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Return at the next announcement."""
        await self._event.wait()


@dataclass(slots=True, eq=False)
class _Candidate:
    """A worker from its birth on: first a candidate, then the one that serves."""

    process: WorkerProcess
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    decided: trio.Event = field(default_factory=trio.Event)
    """It has loaded, or will not."""
    ready: Ready | None = None
    models: DeviceModels | None = None
    was_spare: bool = False
    fault: str | None = None
    """Why it was given up, where it has not died by itself."""

    @property
    def is_loaded(self) -> bool:
        return self.models is not None and self.process.death is None


class DeviceWorker:
    """Keeps one device serving."""

    def __init__(self, setup: DeviceSetup, changes: Changes) -> None:
        self._setup, self._changes = setup, changes
        self._loader = ModelLoader(setup)
        self._quarantine = Quarantine(setup.rules.quarantine)
        self._serving: _Candidate | None = None
        self._models: DeviceModels | None = None
        self._spare: _Candidate | None = None
        self._jail: str | None = None
        self._cause: str | None = None
        self._announced = False
        self._scope = trio.CancelScope()
        self.report: DeviceReport | None = None
        self.is_lost = False
        """The device itself is gone."""

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """What answers here now: nothing while another worker is being started."""
        return self._models.served if self.is_alive and self._models is not None else ()

    @property
    def is_alive(self) -> bool:
        return self._serving is not None and self._serving.is_loaded

    @property
    def free_bytes(self) -> int:
        """What no model takes of the device's budget; nothing while another worker is being started."""
        return self._models.free_bytes if self.is_alive and self._models is not None else 0

    def wants(self, model_id: ModelId) -> bool:
        """Return whether this device was asked to serve the model, loaded or not."""
        return model_id in self._loader.wanted

    @property
    def models(self) -> DeviceModels:
        """What the worker that lives now has loaded.

        Raises:
            WorkerDiedError: none does; another one is being started.
        """
        if not self.is_alive or self._models is None:
            raise WorkerDiedError("the worker is being restarted", code="worker_died")
        return self._models

    async def load(self, model: LocalModel) -> ServedModel:
        """Load a model and serve it over all restarts to come. Raises: as ``DeviceModels.load``."""
        served = await self.models.load(model)
        self._loader.wanted[model.model_id] = model
        self._changes.announce()
        return served

    async def load_again(self, model_id: ModelId) -> DeviceModels:
        """Return the models of this device once the wanted one is loaded. Raises: as ``DeviceModels.load``."""
        models = self.models
        await models.load(self._loader.wanted[model_id])
        return models

    async def unload(self, model_id: ModelId) -> None:
        """Serve a model no more. Raises: as ``DeviceModels.unload``."""
        await self.models.unload(model_id)
        self._loader.wanted.pop(model_id, None)
        self._changes.announce()

    @property
    def process(self) -> WorkerProcess:
        """The worker that lives now.

        Raises:
            WorkerDiedError: none does; another one is being started.
        """
        if self._serving is None or not self.is_alive:
            raise WorkerDiedError("the worker is being restarted", code="worker_died")
        return self._serving.process

    def state(self) -> WorkerState:
        """Return what can be told of it now."""
        now = trio.current_time()
        life: Life = "starting" if self._cause is None else "restarting"
        if self.is_lost:
            life = "lost"
        elif self.is_alive:
            life = "serving"
        elif self._quarantine.is_on:
            life = "quarantined"
        return WorkerState(
            device=self._setup.choice.name,
            life=life,
            jail=self._jail,
            spare=self._spare_state(),
            deaths=self._quarantine.deaths(now),
            cause=self._cause,
            models=frozenset(self._loader.wanted),
            probe_in_s=max(self._quarantine.next_start_at - now, 0.0) if life == "quarantined" else None,
        )

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker alive until cancelled or lost; started once the first one serves, or has failed to."""
        with self._scope:
            await self._keep(task_status)
        self._serving, self._models, self._spare, self.report = None, None, None, None
        self._announce(task_status)
        self._changes.announce()

    def lose(self) -> None:
        """End the workers of a device that is there no more: their jobs fail, and ``run`` returns."""
        self.is_lost, self._cause = True, "the driver lists this device no more"
        self._setup.metrics.worker_died(self._setup.choice.name, "device_lost")
        log.error("device lost", extra={"device": self._setup.choice.name})
        self._scope.cancel()

    @property
    def choice(self) -> DeviceChoice:
        return self._setup.choice

    @property
    def pids(self) -> frozenset[int]:
        """Our processes on this device: the one that serves, and the spare."""
        ours = (self._serving, self._spare)
        return frozenset(it.process.pid for it in ours if it is not None and it.process.pid is not None)

    async def follow(self, now: DeviceNow) -> None:
        """Show the device as it is now, and keep its models to the memory that others leave."""
        if self.report is None or self._models is None or not self.is_alive:
            return
        free = self.report.memory_free_bytes if now.memory_free_bytes is None else now.memory_free_bytes
        self.report = replace(self.report, memory_free_bytes=free, load=now.load)
        before = self._offered()
        try:
            await self._models.follow(now)
        except WorkerDiedError:
            return  # its own task finds out, too
        if self._offered() != before:
            self._changes.announce()

    def _offered(self) -> list[tuple[ModelId, int, str | None]]:
        """Return what others hear of the models, as far as memory decides it."""
        return [(it.model_id, it.context_tokens, it.lacks) for it in self.served]

    async def _keep(self, task_status: TaskStatus[None]) -> None:
        next_one: _Candidate | None = None
        async with trio.open_nursery() as nursery:
            while True:
                candidate = next_one or self._take_spare() or self._start(nursery)
                if candidate.process.is_held:
                    await candidate.process.look()
                    # What is free of the machine's memory by now.
                    candidate.process.wake(memory_bytes_max=self._memory_bytes_max(candidate))
                await candidate.decided.wait()
                if candidate.is_loaded and await self._passes_probe(candidate):
                    self._serve(candidate)
                    self._announce(task_status)
                    if candidate.was_spare:
                        await self._catch_up(candidate)
                    await self._keep_spares(candidate, nursery)
                else:
                    self._note_death(candidate)
                # Whoever waits for this node to be up is not kept waiting by one broken device.
                self._announce(task_status)
                # Its imports are most of a cold start, and need nothing of what the dead one still holds.
                is_wanted = not self._has_spare and not self._quarantine.is_on
                next_one = self._start(nursery, is_held=True) if is_wanted else None
                if self._spare is None or not self._spare.is_loaded:
                    # What it held is needed for the next one.
                    await candidate.process.wait_over()
                await trio.sleep_until(self._quarantine.next_start_at)

    def _serve(self, candidate: _Candidate) -> None:
        assert candidate.models is not None
        self._serving, self._models, self.report = candidate, candidate.models, candidate.models.report
        if candidate.ready is not None:
            self._jail = candidate.ready.jail
        self._changes.announce()

    def _note_death(self, candidate: _Candidate) -> None:
        """Decide what follows, before anybody hears that this one is gone."""
        candidate.scope.cancel()
        death, device = candidate.process.death, self._setup.choice.name
        self._cause = candidate.fault or str(death)
        self._setup.metrics.worker_died(device, "not_started" if death is None else death.code)
        self._quarantine.died(trio.current_time())
        if self._quarantine.is_on and self._spare is not None:
            # The probe is a fresh process's: what was wrong may be in this one too.
            self._spare.scope.cancel()
            self._spare = None
        extra = {"device": device, "cause": self._cause, "deaths": self._quarantine.deaths(trio.current_time())}
        wait_s = self._quarantine.next_start_at - trio.current_time()
        if self._quarantine.is_on:
            log.error("device quarantined", extra={**extra, "probe_in_s": wait_s})
        else:
            log.error("worker died", extra={**extra, "restart_in_s": wait_s})
        self._serving, self._models = None, None
        self._changes.announce()

    def _announce(self, task_status: TaskStatus[None]) -> None:
        if not self._announced:
            self._announced = True
            task_status.started()

    # Candidates.

    def _start(self, nursery: trio.Nursery, *, is_held: bool = False) -> _Candidate:
        limits = WorkerLimits(
            jail=Jail(
                mode=self._setup.config.jail,
                readable=self._setup.readable,
                impossible=_VLLM_UNJAILED if self._setup.config.vllm_python else "",
                bubblewrap=self._setup.bubblewrap.program,
            ),
            on_box_failed=self._setup.bubblewrap.give_up,
            memory_bytes_max=self._memory_bytes_max(self._serving),
            is_held=is_held,
        )
        process = WorkerProcess(
            Setup(
                device=self._setup.choice.torch_name,
                threads=self._setup.threads,
                memory_percent=self._setup.config.memory_percent,
            ),
            silence_s_max=self._setup.rules.silence_s_max,
            environment=self._setup.environment,
            limits=limits,
            command=self._setup.rules.command,
        )
        candidate = _Candidate(process)
        nursery.start_soon(self._live, candidate)
        return candidate

    def _memory_bytes_max(self, beside: _Candidate | None) -> int:
        """Return what a worker may hold of this machine's memory: its part, or what is free of it.

        What ``beside`` holds counts as free: the worker itself, or the one in whose place it will be.
        """
        cpu, config = read_cpu(), self._setup.config
        free = cpu.memory_free_bytes
        if beside is not None and beside.process.pid is not None:
            free += resident_bytes(beside.process.pid) or 0
        found = min(free, cpu.memory_total_bytes * config.memory_percent // 100)
        if self._setup.choice.kind == "cpu" and config.memory_bytes_max:
            # A tenth more than is planned for: arithmetic knows no allocator.
            found = min(found, config.memory_bytes_max * 11 // 10)
        return found

    async def _live(self, candidate: _Candidate) -> None:
        """Start, load, and keep a worker until it dies or is given up."""
        with candidate.scope:
            try:
                async with trio.open_nursery() as nursery:
                    await self._load(candidate, nursery)
                    candidate.decided.set()
            except* WorkerDiedError:
                pass  # it is in ``process.death``
        candidate.decided.set()

    async def _load(self, candidate: _Candidate, nursery: trio.Nursery) -> None:
        """Raises: WorkerDiedError."""
        nursery.start_soon(candidate.process.run)
        await candidate.process.wait_woken()
        try:
            with trio.fail_after(START_S_MAX):
                candidate.ready = await candidate.process.wait_ready()
        except trio.TooSlowError:
            candidate.fault = f"it was not ready within {START_S_MAX:g} s"
            candidate.scope.cancel()
            return
        candidate.models = await self._loader.load_all(candidate.process, candidate.ready)
        if candidate.was_spare:
            self._changes.announce()

    async def _passes_probe(self, candidate: _Candidate) -> bool:
        """Let a candidate of a quarantined device compute before it serves; one that fails is dead after this."""
        if not self._quarantine.is_on:
            return True
        try:
            assert candidate.models is not None and candidate.ready is not None
            await probe_device(candidate.process, candidate.ready, self._setup.config)
            if loaded := [model for model in candidate.models.served if model.is_loaded]:
                await measure_model(candidate.process, loaded[0].model_id)
        except ExecutionError as exc:
            candidate.fault = f"the probe failed: {exc}"
            return False
        self._quarantine.passed()
        return True

    # The spare.

    async def _catch_up(self, candidate: _Candidate) -> None:
        """Serve what was asked for, and only that, where a spare loaded its models before."""
        models, wanted = candidate.models, dict(self._loader.wanted)
        assert models is not None
        known = {model.model_id for model in models.served}
        if known == wanted.keys():
            return
        for model_id in known | wanted.keys():
            try:
                if model_id not in wanted:
                    await models.unload(model_id)
                elif model_id not in known:
                    await models.load_at_start(wanted[model_id])
            except (ModelError, ExecutionError) as exc:
                log.warning("model left out", extra={"model": model_id.hex(), "cause": str(exc)})
        self._changes.announce()

    @property
    def _has_spare(self) -> bool:
        return self._spare is not None and self._spare.process.death is None

    def _take_spare(self) -> _Candidate | None:
        spare = self._spare if self._has_spare else None
        self._spare = None
        return spare

    async def _keep_spares(self, serving: _Candidate, nursery: trio.Nursery) -> None:
        """Keep a spare beside a worker that serves, where one is wanted, until that one's death is noted."""
        async with trio.open_nursery() as beside:
            if self._setup.config.warm_spare:
                beside.start_soon(self._replace_spares, serving, nursery)
            await serving.process.wait_dead()
            # At once: whoever waited for this worker has heard, and may ask.
            self._note_death(serving)
            beside.cancel_scope.cancel()

    async def _replace_spares(self, serving: _Candidate, nursery: trio.Nursery) -> None:
        """Start a spare, and another one after each that dies by itself: later and later, and never often."""
        rules, dead_in_a_row = self._setup.rules, 0
        # Beside one that is dying it would take the device before that lets go of it.
        while serving.process.death is None:
            born_at = trio.current_time()
            spare = self._spare = self._start(nursery, is_held=not self._fits_twice())
            spare.was_spare = True
            await spare.process.wait_dead()
            spare.scope.cancel()
            self._spare = None
            has_lived = trio.current_time() - born_at >= rules.quarantine.window_s
            dead_in_a_row = 1 if has_lived else dead_in_a_row + 1
            pause_s = rules.spare_pauses_s[min(dead_in_a_row, len(rules.spare_pauses_s)) - 1]
            death, device = spare.process.death, self._setup.choice.name
            assert death is not None
            self._setup.metrics.worker_died(device, death.code)
            extra = {"device": device, "cause": spare.fault or str(death), "restart_in_s": pause_s}
            log.warning("spare died", extra=extra)
            self._changes.announce()
            await trio.sleep(pause_s)

    def _fits_twice(self) -> bool:
        """Whether the device holds all models a second time."""
        if self.report is None:
            return False
        report, needed = self.report, sum(model.memory_bytes for model in self.served if model.is_loaded)
        budget = device_budget(
            report.kind,
            total_bytes=report.memory_total_bytes,
            free_bytes=report.memory_free_bytes,
            percent=self._setup.config.memory_percent,
            bytes_max=self._setup.config.memory_bytes_max,
        )
        return 2 * needed + FIXED_BYTES[report.kind] <= budget

    def _spare_state(self) -> Spare:
        if self._spare is None or not self._has_spare:
            return "none"
        if self._spare.is_loaded:
            return "loaded"
        return "held" if self._spare.process.is_held else "starting"
