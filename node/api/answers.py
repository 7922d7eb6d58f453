"""Typed values and errors as HTTP answers."""

import msgspec
from starlette.responses import Response

from node.api.errors import ApiError


def json_response(value: msgspec.Struct, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return ``value`` as a JSON answer."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """Return the whole HTTP answer for ``error``."""
    response = Response(msgspec.json.encode(error.answer()), error.status, media_type="application/json")
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
        # OpenAI's SDKs look at this one first.
        response.headers["retry-after-ms"] = str(error.retry_after_s * 1000)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response
