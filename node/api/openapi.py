"""The API's own description, OpenAPI 3.1, made from the types that its routes read and answer with.

Nothing here is written down twice: paths, statuses and texts are the routes' ``Says``, schemas are msgspec's.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from node.api.errors import ErrorAnswer
from node.api.operations import EVENT_STREAM, Form, Operation, Says, Struct, get

PATH: Final = "/api/v1/openapi.json"
JSON: Final = "application/json"
VERSION: Final = "3.1.0"

Node: TypeAlias = dict[str, Any]  # Any: a tree of JSON, whose form is OpenAPI's
_REFS: Final = "#/components/schemas/{name}"


def openapi_route(others: Iterable[BaseRoute]) -> Operation:
    """Return the route of the document; it tells of itself, too."""
    own: list[Operation] = []
    # Made at the first question: a daemon that nobody asks pays nothing for it.
    made: list[bytes] = []
    listed = tuple(others)

    async def answer(_request: Request) -> Response:
        if not made:
            made.append(msgspec.json.encode(document([*listed, *own])))
        return Response(made[0], media_type=JSON)

    own.append(get(PATH, answer, Says(about="This document.")))
    return own[0]


def document(routes: Iterable[BaseRoute]) -> Node:
    """Return the whole document; routes that say nothing of themselves are left out."""
    operations = [route for route in routes if isinstance(route, Operation)]
    types = _types(operations)
    refs, components = msgspec.json.schema_components(types, ref_template=_REFS)
    schemas = dict(zip(types, refs, strict=True))
    paths: dict[str, Node] = {}
    for it in operations:
        paths.setdefault(_template(it.path), {})[it.method.lower()] = _operation(it, schemas)
    return {
        "openapi": VERSION,
        "info": {
            "title": "souk",
            "version": importlib.metadata.version("souk"),
            "description": "A node's own API: OpenAI's under /v1, its control under /api/v1.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The token of the node's home."}
            },
        },
    }


def _types(operations: Iterable[Operation]) -> list[Form]:
    found: dict[Form, None] = {ErrorAnswer: None}
    for it in operations:
        says = it.says
        found |= dict.fromkeys(type_ for type_ in (says.answer, says.events, says.body) if type_ is not None)
    return list(found)


def _template(path: str) -> str:
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _operation(route: Operation, schemas: dict[Form, Node]) -> Node:
    says = route.says
    parameters = [*_path_parameters(route.path), *_query_parameters(says.query)]
    content = _content(says, schemas)
    told = {says.status: "All is well."} | says.also
    error = {"description": "What went wrong.", "content": {JSON: {"schema": schemas[ErrorAnswer]}}}
    shown: Node = {
        "summary": says.about,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{_template(route.path)}").strip("_"),
        "responses": {
            **{str(status): {"description": text} | content for status, text in told.items()},
            "default": error,
        },
    }
    if parameters:
        shown["parameters"] = parameters
    if says.body is not None:
        shown["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas[says.body]}}}
    if says.is_open:
        shown["security"] = []
    return shown


def _content(says: Says, schemas: dict[Form, Node]) -> Node:
    content: Node = {}
    if says.answer is not None:
        content[JSON] = {"schema": schemas[says.answer]}
    if says.events is not None:
        content[EVENT_STREAM] = {"schema": schemas[says.events]}
    if says.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"content": content} if content else {}


def _path_parameters(path: str) -> Iterator[Node]:
    for name in re.findall(r"\{(\w+)(?::\w+)?\}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(query: Struct | None) -> Iterator[Node]:
    if query is None:
        return
    (_ref,), components = msgspec.json.schema_components([query], ref_template=_REFS)
    form = components[query.__name__]
    for name, schema in form["properties"].items():
        yield {"name": name, "in": "query", "required": name in form["required"], "schema": schema}
