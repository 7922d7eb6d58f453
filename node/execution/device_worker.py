"""One device and the worker process that serves it: a new worker after each death.

The process itself is ``worker_process.py``, what it loads ``loading.py``; jobs find their device in ``pool.py``.
"""

import logging
from typing import Final

import trio
from trio import TaskStatus

from node.errors import WorkerDiedError
from node.execution.frames import Setup
from node.execution.interface import DeviceReport, ServedModel
from node.execution.loading import DeviceModels, DeviceSetup, LocalModel, ModelLoader
from node.execution.worker_process import WorkerProcess
from protocol.units import ModelId

log = logging.getLogger(__name__)

START_S_MAX: Final = 120.0
_BACKOFF_S: Final = (0.1, 0.5, 2.0, 10.0, 30.0)
# A worker that lived this long died of something new.
_LIVED_S: Final = 60.0


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


class DeviceWorker:
    """Keeps one device serving."""

    def __init__(self, setup: DeviceSetup, changes: Changes) -> None:
        self._setup, self._changes = setup, changes
        self._loader = ModelLoader(setup)
        self._process: WorkerProcess | None = None
        self._models: DeviceModels | None = None
        self._announced = False
        self.report: DeviceReport | None = None

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """What answers here now: nothing while another worker is being started."""
        return () if self._models is None else self._models.served

    @property
    def is_alive(self) -> bool:
        return self._models is not None

    def wants(self, model_id: ModelId) -> bool:
        """Return whether this device was asked to serve the model, loaded or not."""
        return model_id in self._loader.wanted

    @property
    def models(self) -> DeviceModels:
        """What the worker that lives now has loaded.

        Raises:
            WorkerDiedError: none does; another one is being started.
        """
        if self._models is None:
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
        if self._process is None:
            raise WorkerDiedError("the worker is being restarted", code="worker_died")
        return self._process

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a worker alive until cancelled; started once the first one serves, or has failed to."""
        failures = 0
        while True:
            born = trio.current_time()
            process = self._new_process()
            try:
                await self._live(process, task_status)
            finally:
                self._process, self._models = None, None
                self._changes.announce()
            if trio.current_time() - born > _LIVED_S:
                failures = 0
            delay_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            failures += 1
            reason = "not_started" if process.death is None else process.death.code
            self._setup.metrics.worker_died(self._setup.choice.name, reason)
            log.error(
                "worker died",
                extra={"device": self._setup.choice.name, "cause": str(process.death), "restart_in_s": delay_s},
            )
            # Whoever waits for this node to be up is not kept waiting by one broken device.
            self._announce(task_status)
            await trio.sleep(delay_s)

    def _new_process(self) -> WorkerProcess:
        return WorkerProcess(
            Setup(device=self._setup.choice.name, threads=self._setup.threads),
            silence_s_max=self._setup.silence_s_max,
            environment=self._setup.environment,
        )

    def _announce(self, task_status: TaskStatus[None]) -> None:
        if not self._announced:
            self._announced = True
            task_status.started()

    async def _live(self, process: WorkerProcess, task_status: TaskStatus[None]) -> None:
        """Start, load, and serve until the worker dies."""
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(START_S_MAX):
                    ready = await nursery.start(process.run)
                models = await self._loader.load_all(process, ready)
            except (WorkerDiedError, trio.TooSlowError) as exc:
                log.warning("worker not started", extra={"device": self._setup.choice.name, "cause": str(exc)})
                nursery.cancel_scope.cancel()
                return
            self._process, self._models, self.report = process, models, models.report
            self._changes.announce()
            self._announce(task_status)
