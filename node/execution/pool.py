"""The node's executor: one worker process per device, and each job on the device that has the fewest.

Implements ``interface.Executor``. Devices and restarts are ``device_worker.py``'s business.
"""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio
from trio import TaskStatus

from node.config import WorkerSection
from node.errors import ExecutionError, JobRefusedError, ModelError, WorkerDiedError
from node.execution import frames
from node.execution.bubblewrap import Bubblewrap, find_bubblewrap
from node.execution.capacity import Capacity, measure_capacity
from node.execution.decode_library import compile_decode
from node.execution.device_worker import Changes, DeviceWorker
from node.execution.devices import (
    DeviceChoice,
    NvmlDevice,
    choose_devices,
    load_nvml,
    read_nvml,
    share_devices,
    worker_environment,
)
from node.execution.frames import Prepare, Prepared, PrepareItems, Start
from node.execution.gpu_readings import GpuReader
from node.execution.interface import DeviceReport, Piece, Prompt, Score, ServedModel
from node.execution.inventory import Inventory
from node.execution.loading import DeviceModels, DeviceSetup
from node.execution.measurements import Measurements
from node.execution.model_fit import LocalModel
from node.execution.residency import MEMORY, MODEL_BUSY
from node.execution.worker_process import Request
from node.execution.worker_rules import WorkerRules
from node.execution.worker_state import WorkerState
from node.home import Home
from node.metrics import Metrics
from node.model_names import names_model
from protocol.fields import Task
from protocol.task import GenerateInput, Sampling, pack_tokens
from protocol.tasks.registry import TaskInput, encode_task_input, task_of
from protocol.units import ModelId

log = logging.getLogger(__name__)

ALL_MODELS = "*"
_RULES: Final = WorkerRules()


class ModelSource(Protocol):
    """Where models come from; ``node.models.store.ModelStore`` is one."""

    def models(self) -> Sequence[LocalModel]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A prompt that a worker holds for a job, with the request that owns it there."""

    prompt: Prompt
    request: Request
    models: DeviceModels
    lease: ExitStack
    """Closes the request, and lets the model go."""
    task: Task
    tokens_out_max: int


class WorkerPool:
    """Runs jobs on this node's devices. ``serve`` names models, or ``*`` for all; empty serves nothing."""

    def __init__(
        self,
        config: WorkerSection,
        store: ModelSource,
        serve: tuple[str, ...],
        *,
        rules: WorkerRules = _RULES,
        metrics: Metrics | None = None,
        home: Home | None = None,
    ) -> None:
        """Without ``metrics`` nobody looks at what is counted; ``home`` keeps what was measured and compiled.

        Without a home each start measures, and nothing is compiled.
        """
        self._home = home
        self._measurements = Measurements(None if home is None else home.measurements_path)
        self._decode_library: Path | None = None
        self.metrics = Metrics() if metrics is None else metrics
        self._config, self._store, self._serve = config, store, serve
        # A node that serves its CPU by choice does not load the driver.
        gpus = tuple if config.devices == "cpu" else GpuReader().read
        self._inventory = Inventory(gpus) if rules.inventory is None else rules.inventory
        self._rules = rules
        self._workers: tuple[DeviceWorker, ...] = ()
        self._bubblewrap = Bubblewrap()
        self._held: dict[str, _Held] = {}
        self._changes = Changes()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once every device has loaded and measured its models.

        No process is left when this returns.

        Raises:
            ConfigError: the configuration names a device in no known form.
        """
        models = await trio.to_thread.run_sync(self._wanted_models) if self._serve else ()
        await trio.to_thread.run_sync(self._measurements.read)
        if models:
            self._decode_library = await self._compile()
        if models and self._config.jail != "off" and not self._config.vllm_python:
            readable = _readable(models, self._decode_library)
            find = partial(find_bubblewrap, readable, cuda=self._config.devices != "cpu")
            # Left behind by a cancellation, the trial ends by itself.
            self._bubblewrap.program = await trio.to_thread.run_sync(find, abandon_on_cancel=True)
        self._workers = (
            tuple(DeviceWorker(setup, self._changes) for setup in self._setups(models)) if models else ()
        )
        try:
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as starting:
                    for worker in self._workers:
                        starting.start_soon(nursery.start, worker.run)
                task_status.started()
                log.info("models served", extra={"models": [model.name for model in self.models()]})
                if self._workers:
                    await self._follow_devices(nursery)
                await trio.sleep_forever()
        finally:
            for held in self._held.values():
                held.lease.close()
            self._held.clear()

    async def _compile(self) -> Path | None:
        """Return the compiled decode step where one is wanted, would be used, and can be had."""
        config = self._config
        on_cpu = not isinstance(config.devices, tuple) or "cpu" in config.devices
        if not config.compiled_decode or self._home is None or config.vllm_python or not on_cpu:
            return None
        try:
            # A stop need not wait: what is written is written whole or not at all.
            return await trio.to_thread.run_sync(compile_decode, self._home.compiled_path, abandon_on_cancel=True)
        except (ExecutionError, OSError) as exc:
            log.warning("decoding is not compiled", extra={"cause": str(exc)})
            return None

    async def _follow_devices(self, nursery: trio.Nursery) -> None:
        """Look at the devices every few seconds: nothing tells when memory is taken, or a card comes or goes."""
        while True:
            await trio.sleep(self._rules.look_s)
            pids = {worker.choice: worker.pids for worker in self._workers if not worker.is_lost}
            found = await trio.to_thread.run_sync(self._inventory.look, pids)
            for worker in self._workers:
                if not worker.is_lost and self._inventory.is_lost(worker.choice):
                    worker.lose()
                elif worker.choice in found:
                    await worker.follow(found[worker.choice])
            for choice in self._appeared():
                log.info("device found", extra={"device": choice.name})
                setup = await trio.to_thread.run_sync(self._setup_found, choice)
                worker = DeviceWorker(setup, self._changes)
                self._workers = (*(it for it in self._workers if it.choice.name != choice.name), worker)
                nursery.start_soon(worker.run)

    def _appeared(self) -> list[DeviceChoice]:
        """Return cards that nobody serves, where every card is to be served."""
        serving = [worker.choice for worker in self._workers if not worker.is_lost]
        if self._config.devices != "auto" or self._config.vllm_python or "CUDA_VISIBLE_DEVICES" in os.environ:
            return []
        names = {choice.name for choice in serving}
        free = (index for index in itertools.count() if f"cuda:{index}" not in names)
        known = {choice.uuid for choice in serving}
        new = [gpu.uuid for gpu in self._inventory.gpus if gpu.uuid is not None and gpu.uuid not in known]
        return [DeviceChoice(kind="cuda", index=next(free), uuid=uuid) for uuid in new]

    def devices(self) -> tuple[DeviceReport, ...]:
        """Return every device that has been ready and is not lost, with its memory and load of the last look."""
        return tuple(worker.report for worker in self._workers if worker.report is not None)

    def models(self) -> tuple[ServedModel, ...]:
        """Return what answers now: nothing of a device whose worker is being restarted."""
        return tuple(model for worker in self._workers for model in worker.served)

    def workers(self) -> tuple[WorkerState, ...]:
        """Return how the worker of each device is."""
        return tuple(worker.state() for worker in self._workers)

    async def wait_change(self) -> None:
        """Return when ``models()`` may give something else than now: a worker died, or serves again."""
        await self._changes.wait()

    async def load(self, model_id: ModelId) -> ServedModel:
        """See ``Executor.load``; on the first device that takes it, the one with most free memory asked first.

        A model that is served somewhere is loaded there, and nowhere else. One under which a worker dies is not
        tried on the next device: it would take the workers of all of them along.
        """
        model = await self._stored(model_id)
        if any(model.model_id == model_id for model in self.models()):
            return await self._least_loaded(model_id).load(model)
        devices = [worker for worker in self._workers if not worker.is_lost]
        refusals: dict[str, ExecutionError] = {}
        for worker in sorted(devices, key=lambda worker: worker.free_bytes, reverse=True):
            if not worker.is_alive:
                refusals[worker.choice.name] = WorkerDiedError("its worker is being restarted", code="worker_died")
                continue
            try:
                return await worker.load(model)
            except WorkerDiedError:
                raise
            except ExecutionError as exc:
                refusals[worker.choice.name] = exc
            except ModelError as exc:
                refusals[worker.choice.name] = ExecutionError(str(exc), code="load")
        raise _no_device(refusals)

    async def unload(self, model_id: ModelId) -> None:
        """See ``Executor.unload``."""
        serving = [worker for worker in self._workers if worker.wants(model_id)]
        if not serving:
            raise self._unknown(model_id)
        for worker in serving:
            await worker.unload(model_id)

    async def prepare(
        self,
        job_key: str,
        model_id: ModelId,
        task_input: TaskInput,
        tokens_out_max: int,
        *,
        scope: bytes = b"",
    ) -> Prompt:
        """See ``Executor.prepare``."""
        assert job_key not in self._held and tokens_out_max > 0
        worker = self._least_loaded(model_id)
        models = await worker.load_again(model_id)
        lease = ExitStack()
        lease.enter_context(models.use(model_id))
        try:
            request = lease.enter_context(models.open_request(tokens_out_max + 2))
            await request.send(_preparation(request.number, model_id, task_input, tokens_out_max, scope=scope))
            answer = await request.receive()
        except BaseException:
            lease.close()
            raise
        assert isinstance(answer, Prepared)
        prompt = Prompt(job_key=job_key, model_id=model_id, tokens_in=answer.tokens)
        self._held[job_key] = _Held(
            prompt=prompt,
            request=request,
            models=models,
            lease=lease,
            task=task_of(task_input),
            tokens_out_max=tokens_out_max,
        )
        return prompt

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        """See ``Executor.generate``."""
        held = self._held.pop(prompt.job_key, None)
        if held is None:
            raise ExecutionError("the prompt is not held any more: prepare it again", code="not_prepared")
        with held.lease, held.models.meter(prompt.model_id, prompt.tokens_in) as meter:
            request, left = held.request, min(tokens_out_max, held.tokens_out_max)
            await request.send(
                Start(
                    request=request.number,
                    temperature_milli=sampling.temperature_milli,
                    top_p_milli=sampling.top_p_milli,
                    seed=sampling.seed,
                    tokens_out_max=left,
                )
            )
            while True:
                piece = await request.receive()
                assert isinstance(piece, Piece)
                left -= piece.output.units
                if left < 0 or task_of(piece.output) != held.task:
                    raise ExecutionError("the worker gave what was not asked for", code="worker_fault")
                meter.note(len(piece.tokens))
                if piece.finish is not None:
                    piece = replace(piece, energy_millijoules=meter.end())
                    held.models.count_energy(prompt.model_id, piece.energy_millijoules)
                try:
                    await sink.send(piece)
                except trio.BrokenResourceError as exc:
                    raise ExecutionError("nobody reads the answer any more", code="reader_gone") from exc
                if piece.finish is not None:
                    return

    async def release(self, prompt: Prompt) -> None:
        """See ``Executor.release``."""
        if held := self._held.pop(prompt.job_key, None):
            held.lease.close()

    async def score(
        self,
        model_id: ModelId,
        task_input: GenerateInput,
        answer: Sequence[int],
        sampling: Sampling,
        *,
        fingerprint: bytes = b"",
    ) -> Score:
        """See ``Scorer.score``."""
        worker = self._least_loaded(model_id)
        models = await worker.load_again(model_id)
        with models.use(model_id), models.open_request(1) as request:
            await request.send(
                frames.Score(
                    request=request.number,
                    model=model_id,
                    messages=task_input.messages,
                    prompt=task_input.prompt,
                    held=task_input.held,
                    answer=pack_tokens(answer),
                    temperature_milli=sampling.temperature_milli,
                    top_p_milli=sampling.top_p_milli,
                    seed=sampling.seed,
                    fingerprint=fingerprint,
                )
            )
            scored = await request.receive()
        assert isinstance(scored, frames.Scored)
        return Score(
            margins=scored.margins,
            logprobs=scored.logprobs,
            fingerprint=scored.fingerprint,
            distances=scored.distances,
        )

    async def bench(self, model: str | None, device: str | None, *, duration_s: float) -> Capacity:
        """Measure a model, by name or the start of its id, on a device that is idle; what is loaded comes first.

        Raises:
            JobRefusedError: ``model_unknown``: no such model is served there.
            ExecutionError: ``device_busy``; as ``load``.
            WorkerDiedError: the worker is gone; another is being started.
        """
        served = [(worker, it) for worker in self._workers for it in worker.served]
        wanted = [
            (worker, it)
            for worker, it in served
            if device in (None, it.device) and (model is None or names_model(model, it.name, it.model_id))
        ]
        if not wanted:
            has = ", ".join(sorted(f"{it.name} on {it.device}" for _, it in served)) or "nothing"
            raise JobRefusedError(
                f"this node does not serve {model or 'any model'} on {device or 'a device'}; it serves {has}",
                code="model_unknown",
            )
        worker, found = min(wanted, key=lambda pair: (not pair[1].is_loaded, pair[0].process.jobs))
        return await measure_capacity(worker, found, duration_s)

    def _least_loaded(self, model_id: ModelId) -> DeviceWorker:
        serving = [w for w in self._workers if any(model.model_id == model_id for model in w.served)]
        if serving:
            # Where it is loaded, before where it would have to be.
            return min(serving, key=lambda worker: (not worker.models.is_loaded(model_id), worker.process.jobs))
        for worker in self._workers:
            if worker.wants(model_id):
                # Raises that it is restarting, unless the model was left out.
                _ = worker.process
        raise self._unknown(model_id)

    def _unknown(self, model_id: ModelId) -> JobRefusedError:
        names = ", ".join(sorted({model.name for model in self.models()})) or "nothing"
        return JobRefusedError(
            f"this node does not serve model {model_id.hex()[:16]}; it serves {names}", code="model_unknown"
        )

    async def _stored(self, model_id: ModelId) -> LocalModel:
        """Return a model of the store whose files are what its manifest says. Raises: JobRefusedError."""

        def find() -> LocalModel:
            for model in self._store.models():
                if model.model_id == model_id:
                    model.verify()
                    return model
            raise JobRefusedError(f"model {model_id.hex()[:16]} is not in the model store", code="model_unknown")

        try:
            return await trio.to_thread.run_sync(find)
        except ModelError as exc:
            raise JobRefusedError(str(exc), code="model_unknown") from exc

    def _wanted_models(self) -> tuple[LocalModel, ...]:
        """Return the models to serve whose files are what their manifests say. Blocks."""
        found = self._store.models()
        for name in self._serve:
            if name != ALL_MODELS and all(model.name != name for model in found):
                log.warning("model left out", extra={"model": name, "cause": "it is not in the model store"})
        wanted = []
        for model in found:
            if ALL_MODELS not in self._serve and model.name not in self._serve:
                continue
            try:
                model.verify()
            except ModelError as exc:
                log.warning("model left out", extra={"model": model.name, "cause": str(exc)})
                continue
            wanted.append(model)
        return tuple(wanted)

    def _setups(self, models: tuple[LocalModel, ...]) -> list[DeviceSetup]:
        nvml = () if self._config.devices == "cpu" else read_nvml(load_nvml())
        choices = choose_devices(self._config.devices, nvml, os.environ)
        if self._config.vllm_python:
            # Its server takes cards by their index.
            shared = share_devices(choices, self._config.vllm_cards)
            choices = tuple(replace(choice, uuid=None) for choice in shared)
        return [self._setup(choice, models, nvml) for choice in choices]

    def _setup_found(self, choice: DeviceChoice) -> DeviceSetup:
        """Return what a device that was found later is served with. Blocks."""
        return self._setup(choice, self._wanted_models(), read_nvml(load_nvml()))

    def _setup(
        self, choice: DeviceChoice, models: tuple[LocalModel, ...], nvml: tuple[NvmlDevice, ...]
    ) -> DeviceSetup:
        library = self._decode_library if choice.kind == "cpu" else None
        threads = self._config.threads or max(1, len(os.sched_getaffinity(0)) - 1)
        return DeviceSetup(
            choice=choice,
            config=self._config,
            threads=threads,
            models=models,
            nvml=nvml,
            environment=worker_environment(choice, os.environ, threads),
            metrics=self.metrics,
            rules=self._rules,
            readable=_readable(models, library),
            bubblewrap=self._bubblewrap,
            measurements=self._measurements,
            decode_library=library,
        )


def _readable(models: Sequence[LocalModel], library: Path | None) -> tuple[str, ...]:
    """Return what a worker reads: the store itself, since what is added later lies there too; the library."""
    return (*{str(model.folder.parent) for model in models}, *([str(library)] if library else []))


def _no_device(refusals: Mapping[str, ExecutionError]) -> ExecutionError:
    """Return what is told of a model that no device took, by why each did not."""
    if not refusals:
        return WorkerDiedError("no worker is running on this node", code="worker_died")
    if len(refusals) == 1:
        return next(iter(refusals.values()))
    by_code = {exc.code: exc for exc in reversed(list(refusals.values()))}
    # What passes by itself first: whoever asked may ask again.
    code = next((it for it in (MODEL_BUSY, "worker_died", MEMORY) if it in by_code), next(iter(by_code)))
    reasons = "; ".join(f"{device}: {exc}" for device, exc in refusals.items())
    kind = WorkerDiedError if code == "worker_died" else ExecutionError
    return kind(f"none of {len(refusals)} devices takes the model: {reasons}", code=code)


def _preparation(
    request: int, model_id: ModelId, task_input: TaskInput, tokens_out_max: int, *, scope: bytes
) -> Prepare | PrepareItems:
    if not isinstance(task_input, GenerateInput):
        data = encode_task_input(task_input)
        return PrepareItems(request=request, model=model_id, task=task_of(task_input), data=data)
    return Prepare(
        request=request,
        model=model_id,
        messages=task_input.messages,
        prompt=task_input.prompt,
        stop=task_input.stop,
        held=task_input.held,
        tokens_out_max=tokens_out_max,
        scope=scope,
    )
