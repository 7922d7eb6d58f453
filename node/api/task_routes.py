"""``POST /api/v1/tasks/…``: jobs that make no text, bought like any other and answered in one JSON."""

import msgspec
from starlette.types import Receive, Scope, Send

from node.api.answers import json_response
from node.api.bodies import to_bad_request
from node.api.intake import Admission, read_body
from node.api.operations import Operation, Says, post
from node.api.orders import item_order
from node.api.relay import run_order, souk_block, souk_headers
from node.api.services import Services
from node.api.task_bodies import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    ForwardAnswer,
    ForwardRequest,
    TaskAnswer,
    TaskRequest,
    TaskUsage,
    VadAnswer,
    VadRequest,
)
from node.api.tasks import input_field, to_answer, to_task_input
from node.market.order import Finished, JobEvent, Output
from protocol.tasks.registry import CLASSIFY, EMBED, FORWARD, VAD, ItemOutput


def task_routes(services: Services, admission: Admission) -> list[Operation]:
    """Return the routes under ``/api/v1/tasks``; ``admission`` is shared with all that orders a job."""

    def route(task: str, form: type[TaskRequest], answer: type[TaskAnswer], about: str) -> Operation:
        endpoint = TaskEndpoint(services, admission, form)
        return post(f"/api/v1/tasks/{task}", endpoint, Says(about=about, body=form, answer=answer))

    return [
        route(EMBED, EmbedRequest, EmbedAnswer, "Have texts turned into vectors."),
        route(CLASSIFY, ClassifyRequest, ClassifyAnswer, "Have images named, the likeliest classes first."),
        route(VAD, VadRequest, VadAnswer, "Have the speech in audio found."),
        route(FORWARD, ForwardRequest, ForwardAnswer, "Run tensors through a model that makes no text."),
    ]


class TaskEndpoint:
    """One task as an ASGI app, so that a client who leaves cancels its order."""

    def __init__(self, services: Services, admission: Admission, form: type[TaskRequest]) -> None:
        self._services = services
        self._admission = admission
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.place():
            try:
                request = msgspec.json.decode(await read_body(receive), type=self._form)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
                raise to_bad_request(exc) from exc
            field = input_field(request)
            order = item_order(request.model, to_task_input(request), request.souk, param=field)
            teller = _Outputs(request)
            await run_order(self._services.market, order, teller, receive, input_field=field)
            assert teller.body is not None
            response = json_response(teller.body, headers=teller.headers)
        await response(scope, receive, send)


class _Outputs:
    """Collects the answer; ``headers`` and ``body`` are complete after ``Finished``."""

    def __init__(self, request: TaskRequest) -> None:
        self.body: TaskAnswer | None = None
        self.headers: dict[str, str] = {}
        self._request = request
        self._outputs: list[ItemOutput] = []

    async def tell(self, event: JobEvent) -> None:
        self.headers |= souk_headers(event)
        match event:
            case Output(result=result) if result is not None:
                self._outputs.append(result)
            case Finished():
                usage = TaskUsage(units_in=event.tokens_in, units_out=event.tokens_out)
                self.body = to_answer(self._request, self._outputs, usage, souk_block(event))
            case _:
                pass

    async def keep_alive(self) -> None:
        """Nothing can be sent before the status."""
