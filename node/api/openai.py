"""The OpenAI-compatible routes: any of its clients can use the network through them (ux.md, section 6)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from node.api.answers import json_response
from node.api.bodies import ChatRequest, ModelEntry, ModelList, ModelSouk, read_chat
from node.api.chat import Head, StreamedAnswer, WholeAnswer, run_order
from node.api.errors import ClientGoneError, unknown_model
from node.api.intake import Admission, read_body
from node.api.orders import to_order
from node.api.services import Services
from node.api.sse import EventStream
from node.api.views import ModelView
from node.errors import NodeError


def openai_routes(services: Services) -> list[Route]:
    """Return the routes under ``/v1``."""
    chat = ChatCompletions(services, Admission(services.config.max_queue))

    async def models(_request: Request) -> Response:
        return json_response(ModelList(data=tuple(_entry(view) for view in services.view.models())))

    async def model(request: Request) -> Response:
        wanted = request.path_params["model"]
        known = services.view.models()
        for view in known:
            if wanted in (view.name, view.model_id):
                return json_response(_entry(view))
        raise unknown_model(wanted, tuple(view.name for view in known))

    return [
        Route("/v1/models", models),
        # Names of models may have slashes.
        Route("/v1/models/{model:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


class ChatCompletions:
    """``POST /v1/chat/completions`` as an ASGI app: a Starlette endpoint could not hold its status back."""

    def __init__(self, services: Services, admission: Admission) -> None:
        self._services = services
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.place():
            request, ignored = read_chat(await read_body(receive))
            head = Head(
                request_id=scope["state"]["request_id"],
                model=request.model,
                created=self._services.unix_s(),
                headers={"x-souk-ignored": ", ".join(ignored)} if ignored else {},
            )
            if request.stream:
                await self._stream(request, head, receive, send)
                return
            response = await self._whole(request, head, receive)
        # The place is free before the client can know: its next request must not be told that the queue is full.
        await response(scope, receive, send)

    async def _whole(self, request: ChatRequest, head: Head, receive: Receive) -> Response:
        answer = WholeAnswer(head)
        order = to_order(request, self._services.draw_seed())
        await run_order(self._services.market, order, answer, receive)
        assert answer.completion is not None
        return json_response(answer.completion, headers=answer.headers)

    async def _stream(self, request: ChatRequest, head: Head, receive: Receive, send: Send) -> None:
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        answer = StreamedAnswer(head, EventStream(send), include_usage=include_usage)
        order = to_order(request, self._services.draw_seed())
        try:
            await run_order(self._services.market, order, answer, receive)
        except NodeError as exc:
            if not answer.started:
                raise
            if not isinstance(exc, ClientGoneError):
                await answer.fail(exc)
        else:
            await answer.end()


def _entry(view: ModelView) -> ModelEntry:
    return ModelEntry(
        id=view.name,
        souk=ModelSouk(
            model_id=view.model_id,
            local=view.local,
            peers=view.peers,
            context_tokens=view.context_tokens,
            price_in=view.price_in,
            price_out=view.price_out,
        ),
    )
