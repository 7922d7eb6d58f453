"""Who may speak to the API at all, and the last word on every answer (ux.md, section 6).

Every process and every web page on the machine can reach a loopback port, so: only loopback Host names (a page
that rebinds its DNS name sends its own), no browser origin but our own dashboard's, and a token. Around the app:
an ``x-request-id`` on every answer, the bound on bodies, 500 for bugs, one log line for each request.
"""

import logging
import secrets
from typing import Final

import trio
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from node.api.answers import error_response
from node.api.errors import ApiError
from node.api.sessions import Sessions
from node.metrics import OTHER, Metrics

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
DRAIN_S_MAX: Final = 2.0
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Probes: no token, no log line."""
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

log = logging.getLogger(__name__)


class Guard:
    """Stands before the app; an ASGI middleware."""

    def __init__(self, app: ASGIApp, sessions: Sessions, metrics: Metrics) -> None:
        self._app = app
        self._sessions = sessions
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(receive, send)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        begun_s = trio.current_time()
        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            app = self._app if refusal is None else error_response(refusal)
            await app(scope, exchange.receive, exchange.send)
        except Exception:  # the edge of one request: a bug in a handler must not end the others
            log.exception("request failed", extra={"request_id": exchange.request_id, "path": scope["path"]})
            # An answer that has begun can only be cut off, and hypercorn does that when this returns.
            if exchange.status is None:
                error = ApiError("a fault of this node; its log has it", status=500, code="internal_error")
                await error_response(error)(scope, exchange.receive, exchange.send)
        finally:
            took_s = trio.current_time() - begun_s
            self._metrics.request_served(_route(scope), scope["method"], exchange.status, took_s)
            if scope["path"] not in OPEN_PATHS:
                # Polled views at debug: they would drown the rest.
                log.log(
                    logging.DEBUG if scope["method"] == "GET" else logging.INFO,
                    "request ended",
                    extra={
                        "request_id": exchange.request_id,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": exchange.status,
                        "ms": round(took_s * 1000),
                    },
                )

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if name.lower() not in LOOPBACK_NAMES:
            return ApiError(
                "the Host header names another machine; use 127.0.0.1, [::1] or localhost",
                status=403,
                code="host_refused",
            )
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return ApiError("requests of other web pages are refused", status=403, code="origin_refused")
        if not _is_open(path) and not self._holds_token(headers.get("authorization", "")):
            return ApiError(
                "expected the header 'Authorization: Bearer <token>' with the token of this node's home",
                status=401,
                code="invalid_api_key",
            )
        length = headers.get("content-length", "0")
        # h11 has checked that it is a number.
        if int(length) > BODY_BYTES_MAX:
            return _too_large()
        return None

    def _holds_token(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return self._sessions.admits(token.strip()) and scheme.lower() == "bearer"


def _is_open(path: str) -> bool:
    """Say whether a path needs no token: probes, and the dashboard's files, which hold nothing of this node."""
    return path in OPEN_PATHS or path == "/" or path.startswith("/ui/")


class Exchange:
    """One request and its answer, seen in passing."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.request_id = secrets.token_hex(8)
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._body_bytes = 0
        self._body_ended = False

    async def receive(self) -> Message:
        """Pass the request on. Raises: ApiError: 413, for a body that did not announce its length."""
        message = await self._receive()
        if message["type"] != "http.request":
            self._body_ended = True
            return message
        self._body_bytes += len(message.get("body", b""))
        self._body_ended = not message.get("more_body", False)
        if self._body_bytes > BODY_BYTES_MAX:
            raise _too_large()
        return message

    async def send(self, message: Message) -> None:
        """Pass the answer on, with its id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and not self._body_ended:
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drain(self) -> None:
        """Throw away what is left of a body that was refused.

        hypercorn hands bodies over in a queue of ten: full at the end of an answer, its two tasks for this
        connection wait for each other for good. And a client that is still sending reads no answer.
        """
        with trio.move_on_after(DRAIN_S_MAX):
            while not self._body_ended:
                message = await self._receive()
                self._body_ended = not message.get("more_body", False)


def _route(scope: Scope) -> str:
    """Return the template of the route that answered: a label made of paths would grow with every id."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else OTHER


def _too_large() -> ApiError:
    return ApiError(f"a body may have {BODY_BYTES_MAX} bytes at most", status=413, code="body_too_large")
