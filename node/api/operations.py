"""One route together with what it reads and answers, as types: what the document of the API is made of.

The query and the body of a request are decoded by the very types that stand here, so the document cannot promise
what the route does not take; that answers have the types promised is held by ``tests/api/test_openapi.py``.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Final, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from node.api.bodies import to_bad_request
from node.api.intake import read_body

Method = Literal["GET", "POST", "PATCH", "DELETE"]
Struct = type[msgspec.Struct]
Form = Struct | UnionType
"""A struct, or several told apart by their tags."""
Endpoint = Callable[[Request], Awaitable[Response]]
Q = TypeVar("Q", bound=msgspec.Struct)
EVENT_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """What a route is for, what it reads, and what it answers when all is well."""

    about: str
    answer: Struct | None = None
    """The JSON of the answer; None: it has no body, or ``text``."""
    status: int = 200
    also: dict[int, str] = field(default_factory=dict)
    """Other statuses that come with the same body, and when."""
    events: Struct | None = None
    """What each ``data:`` line of an answer in ``text/event-stream`` holds, where it can be one."""
    text: bool = False
    """The answer is plain text."""
    body: Form | None = None
    query: Struct | None = None
    is_open: bool = False
    """No token is asked for."""


class Operation(Route):
    """A route of Starlette's that knows its ``Says``."""

    def __init__(self, method: Method, path: str, endpoint: Endpoint | ASGIApp, says: Says) -> None:
        super().__init__(path, endpoint, methods=[method])
        self.method = method
        self.says = says


def get(path: str, endpoint: Endpoint | ASGIApp, says: Says) -> Operation:
    """Return the route of something to look at."""
    return Operation("GET", path, endpoint, says)


def post(path: str, endpoint: Endpoint | ASGIApp, says: Says) -> Operation:
    """Return the route of something to be done."""
    return Operation("POST", path, endpoint, says)


def read_query(request: Request, form: type[Q]) -> Q:
    """Return the query of a request; names that it does not know are let through.

    Raises:
        ApiError: 400, with the parameter at fault as ``param``.
    """
    given: dict[str, Any] = dict(request.query_params)  # Any: convert reads what the strings stand for
    try:
        return msgspec.convert(given, form, strict=False)
    except msgspec.ValidationError as exc:
        raise to_bad_request(exc) from exc


async def read_json(request: Request, form: type[Q]) -> Q:
    """Return the body of a request.

    Raises:
        ApiError: 400, with the field at fault as ``param``; 408.
        ClientGoneError: the client left before its end.
    """
    data = await read_body(request.receive)
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise to_bad_request(exc) from exc
