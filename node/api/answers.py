"""Typed values as HTTP answers."""

import msgspec
from starlette.responses import Response


def json_response(value: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return ``value`` as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")
