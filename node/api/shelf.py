"""Models taken into service and out of it: the store, the executor, and the hold that keeps a served model there.

The two rooms do not know each other; here a name becomes the id that both understand.
"""

from typing import Protocol

import trio

from node.api.errors import ApiError, device_refusal
from node.errors import ExecutionError, ModelError
from node.execution.interface import ServedModel
from node.model_names import begins_id
from node.models.holding import Holds
from node.models.store import ModelStore
from protocol.units import ModelId


class Devices(Protocol):
    """Of ``node.execution.interface.Executor``, what is needed here."""

    def models(self) -> tuple[ServedModel, ...]: ...

    async def load(self, model_id: ModelId) -> ServedModel: ...

    async def unload(self, model_id: ModelId) -> None: ...


class Shelf:
    """This node's models by name. What is served is held, so that nobody removes it from the store."""

    def __init__(self, devices: Devices, store: ModelStore, holds: Holds) -> None:
        self._devices, self._store, self._holds = devices, store, holds
        # What is served and what is held change together: else two take one model, and one hold is never released.
        self._holding = trio.Lock()

    async def load(self, name: str) -> ServedModel:
        """Serve a model of the store from now on.

        Raises:
            ApiError: 404 ``model_not_found``, 409 ``model_busy`` or ``model_refused``, 503 ``worker_died``.
        """
        try:
            stored = await trio.to_thread.run_sync(self._store.find, name)
        except ModelError as exc:
            raise ApiError(str(exc), status=404, code="model_not_found", param="model") from exc
        try:
            served = await self._devices.load(stored.model_id)
        except ExecutionError as exc:
            raise device_refusal(exc) from exc
        await self.hold_served()
        return served

    async def unload(self, name: str) -> None:
        """Serve a model no more.

        Raises:
            ApiError: 404 ``model_not_found``, 409 ``model_busy``, 503 ``worker_died``.
        """
        served = {model.model_id: model.name for model in self._devices.models()}
        wanted = name.lower()
        found = [model_id for model_id, called in served.items() if called == wanted]
        if not found:
            found = [model_id for model_id in served if begins_id(wanted, model_id)]
        if len(found) != 1:
            names = ", ".join(sorted(served.values())) or "nothing"
            message = f"expected one model called {name!r}, got {len(found)}; this node serves {names}"
            raise ApiError(message, status=404, code="model_not_found", param="model")
        async with self._holding:
            try:
                await self._devices.unload(found[0])
            except ExecutionError as exc:
                raise device_refusal(exc) from exc
            self._holds.release(found[0])

    async def hold_served(self) -> None:
        """Hold everything that is served now. What a worker that is restarting had stays held."""
        held: set[ModelId] | None = None
        async with self._holding:
            # Looked at once more after each wait: nothing that came meanwhile is missed.
            while held != (served := {model.model_id for model in self._devices.models()}):
                await trio.to_thread.run_sync(self._holds.take, served)
                held = served
