"""The API as one ASGI app: routes, the shape of errors, and the guard before them."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from node.api.answers import error_response
from node.api.bench_routes import bench_routes
from node.api.control import control_routes
from node.api.dashboard import page_routes, session_routes
from node.api.detached import DetachedJobs
from node.api.detached_routes import detached_routes
from node.api.errors import ApiError, ClientGoneError, to_api_error
from node.api.guard import Guard
from node.api.intake import Admission
from node.api.job_events import job_events_route
from node.api.job_routes import job_routes
from node.api.ledger_routes import ledger_routes
from node.api.live import live_routes
from node.api.log_routes import log_routes
from node.api.model_routes import model_routes
from node.api.openai import openai_routes
from node.api.openapi import openapi_route
from node.api.operator_routes import operator_routes
from node.api.peer_routes import peer_routes
from node.api.services import Services
from node.api.sessions import Sessions
from node.api.task_routes import task_routes
from node.api.token_routes import token_routes
from node.errors import NodeError

CLIENT_CLOSED = 499
"""Nobody reads it; the log shows it."""


def make_app(services: Services, detached: DetachedJobs) -> ASGIApp:
    """Return the app that ``node.api.server.serve_app`` serves; ``detached.run`` carries out what it takes on."""
    sessions = Sessions(services.token)
    # One bound for all that orders a job.
    admission = Admission(services.config.max_queue)
    routes = [
        *openai_routes(services, admission),
        *task_routes(services, admission),
        job_events_route(services, sessions),
        *control_routes(services),
        *detached_routes(services, admission, detached),
        *job_routes(services),
        *ledger_routes(services),
        *live_routes(services, sessions),
        *log_routes(services, sessions),
        *session_routes(sessions),
        *token_routes(sessions, services.rotate_token, services.token_file),
        *peer_routes(services.peers),
        *operator_routes(services.operator),
        *model_routes(services.shelf),
        *bench_routes(services.bench),
    ]
    app = Starlette(
        routes=[openapi_route(routes), *routes, *page_routes()],
        exception_handlers={
            HTTPException: _on_http_error,
            ClientGoneError: _on_client_gone,
            NodeError: _on_node_error,
            Exception: _on_bug,
        },
    )
    # A redirect would answer where a 404 says what is wrong.
    app.router.redirect_slashes = False
    return Guard(app, sessions, services.metrics)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    what = f"{request.method} {request.url.path}"
    if exc.status_code == 404:
        error = ApiError(f"{what}: there is nothing at this path", status=404, code="not_found")
    elif exc.status_code == 405:
        error = ApiError(f"{what}: this path does not know the method", status=405, code="method_not_allowed")
    else:
        error = ApiError(exc.detail, status=exc.status_code, code="http_error")
    response = error_response(error)
    response.headers.update(exc.headers or {})
    return response


async def _on_client_gone(_request: Request, _exc: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _on_node_error(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, NodeError)
    return error_response(to_api_error(exc))


async def _on_bug(_request: Request, _exc: Exception) -> Response:
    # The guard logs it: Starlette raises it again.
    return error_response(ApiError("a fault of this node; its log has it", status=500, code="internal_error"))
