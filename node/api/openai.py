"""The OpenAI-compatible routes: any of its clients can use the network through them (ux.md, section 6)."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.answers import json_response
from node.api.bodies import (
    ChatRequest,
    Chunk,
    Completion,
    ModelEntry,
    ModelList,
    ModelSouk,
    TextAnswer,
    TextRequest,
)
from node.api.dialects import ChatDialect, Dialect, Head, TextDialect
from node.api.embeddings import Embeddings, EmbeddingsEndpoint, EmbeddingsRequest
from node.api.errors import ClientGoneError, unknown_model
from node.api.intake import Admission, read_body
from node.api.operations import Operation, Says, get, post
from node.api.orders import to_order
from node.api.relay import StreamedAnswer, WholeAnswer, run_order
from node.api.services import Services
from node.api.sse import EventStream
from node.api.views import ModelView
from node.errors import NodeError
from node.market.order import Order, UnknownModelError


def openai_routes(services: Services, admission: Admission) -> list[Operation]:
    """Return the routes under ``/v1``."""
    chat = Completions(services, admission, ChatDialect())
    text = Completions(services, admission, TextDialect())

    async def models(_request: Request) -> Response:
        return json_response(ModelList(data=tuple(_entry(view) for view in services.view.models())))

    async def model(request: Request) -> Response:
        wanted = request.path_params["model"]
        known = services.view.models()
        for view in known:
            if wanted in (view.name, view.model_id):
                return json_response(_entry(view))
        raise unknown_model(UnknownModelError(wanted, tuple(view.name for view in known)))

    return [
        get("/v1/models", models, Says(about="List the network's models.", answer=ModelList)),
        # Names of models may have slashes.
        get("/v1/models/{model:path}", model, Says(about="Show one model.", answer=ModelEntry)),
        post(
            "/v1/chat/completions",
            chat,
            Says(about="Have a chat answered.", body=ChatRequest, answer=Completion, events=Chunk),
        ),
        post(
            "/v1/completions",
            text,
            Says(about="Have a raw prompt continued.", body=TextRequest, answer=TextAnswer, events=TextAnswer),
        ),
        post(
            "/v1/embeddings",
            EmbeddingsEndpoint(services, admission),
            Says(about="Have texts turned into vectors.", body=EmbeddingsRequest, answer=Embeddings),
        ),
    ]


class Completions:
    """One endpoint that a model answers, as an ASGI app: a Starlette endpoint could not hold its status back."""

    def __init__(self, services: Services, admission: Admission, dialect: Dialect) -> None:
        """``admission`` is shared: its places are for both endpoints together."""
        self._services = services
        self._admission = admission
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.place():
            request, ignored = self._dialect.read(await read_body(receive))
            order = to_order(request, self._services.draw_seed())
            head = Head(
                request_id=scope["state"]["request_id"],
                model=request.model,
                created=self._services.unix_s(),
                headers={"x-souk-ignored": ", ".join(ignored)} if ignored else {},
            )
            if request.stream:
                include_usage = request.stream_options is not None and request.stream_options.include_usage
                answer = StreamedAnswer(self._dialect, head, EventStream(send), include_usage=include_usage)
                await self._stream(order, answer, receive)
                return
            response = await self._whole(order, head, receive)
        # The place is free before the client can know: its next request must not be told that the queue is full.
        await response(scope, receive, send)

    async def _whole(self, order: Order, head: Head, receive: Receive) -> Response:
        answer = WholeAnswer(self._dialect, head)
        await run_order(self._services.market, order, answer, receive, input_field=self._dialect.input_field)
        assert answer.body is not None
        return json_response(answer.body, headers=answer.headers)

    async def _stream(self, order: Order, answer: StreamedAnswer, receive: Receive) -> None:
        try:
            await run_order(self._services.market, order, answer, receive, input_field=self._dialect.input_field)
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
