"""The control routes that take models of this node's store into service and out of it."""

from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.intake import run_unless_gone
from node.api.operations import Operation, Says, post
from node.api.views import View
from node.execution.interface import ServedModel


class LoadedModelView(View, frozen=True, kw_only=True):
    """A model that answers now."""

    schema: int = 1
    name: str
    model_id: str
    device: str
    dtype: str
    context_tokens: int
    slots: int
    memory_bytes: int
    tokens_per_s: float


class UnloadAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    name: str


class Shelf(Protocol):
    """``node.api.shelf.Shelf`` is one; what goes wrong is an ApiError."""

    async def load(self, name: str) -> ServedModel: ...

    async def unload(self, name: str) -> None: ...


def model_routes(shelf: Shelf) -> list[Operation]:
    """Return the routes under ``/api/v1/models/{model}``."""

    async def load(request: Request) -> Response:
        async def work() -> Response:
            return json_response(_view(await shelf.load(request.path_params["model"])))

        return await run_unless_gone(request.receive, work)

    async def unload(request: Request) -> Response:
        name = request.path_params["model"]
        await shelf.unload(name)
        return json_response(UnloadAnswer(name=name))

    return [
        post(
            "/api/v1/models/{model}/load",
            load,
            Says(about="Serve a model of the store, by its name or the start of its id.", answer=LoadedModelView),
        ),
        post(
            "/api/v1/models/{model}/unload",
            unload,
            Says(about="Serve a model no more.", answer=UnloadAnswer),
        ),
    ]


def _view(model: ServedModel) -> LoadedModelView:
    return LoadedModelView(
        name=model.name,
        model_id=model.model_id.hex(),
        device=model.device,
        dtype=model.dtype,
        context_tokens=model.context_tokens,
        slots=model.slots,
        memory_bytes=model.memory_bytes,
        tokens_per_s=model.tokens_per_s_milli / 1000,
    )
