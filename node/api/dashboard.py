"""The dashboard: static files under a strict policy, and the way in (ux.md, section 10).

The page itself lives in ``static/``: plain modules without a build step. It reads the same control API as the CLI.
"""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.api.answers import json_response
from node.api.errors import ApiError
from node.api.operations import Operation, Says, post, read_json
from node.api.sessions import CODE_S_MAX, Sessions
from node.api.views import View

FOLDER: Final = Path(__file__).parent / "static"
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # A new version of the daemon is a new page; the files are small and come from this machine.
    "cache-control": "no-cache",
}
_TYPES: Final = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


class CodeAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    code: str
    expires_s: float


class SessionRequest(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    code: str


class SessionAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    token: str


def page_routes() -> list[Route]:
    """Return ``/`` and the page's files under ``/ui``."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in _TYPES}

    def answer(name: str) -> Response:
        return Response(files[name], headers=HEADERS, media_type=_TYPES[Path(name).suffix])

    async def page(_request: Request) -> Response:
        return answer("index.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise ApiError(f"the dashboard has no file {name[:64]!r}", status=404, code="not_found")
        return answer(name)

    return [Route("/", page, methods=["GET"]), Route("/ui/{name}", file, methods=["GET"])]


def session_routes(sessions: Sessions) -> list[Operation]:
    """Return the two ends of signing in."""

    async def code(_request: Request) -> Response:
        return json_response(CodeAnswer(code=sessions.issue_code(), expires_s=CODE_S_MAX))

    async def session(request: Request) -> Response:
        token = sessions.redeem((await read_json(request, SessionRequest)).code)
        if token is None:
            raise ApiError(
                "this address was used already or is too old: run souk open again",
                status=401,
                code="code_refused",
                param="code",
            )
        return json_response(SessionAnswer(token=token))

    about_code = "A code that opens the dashboard once, as `/#code=...`."
    about_session = "Trade such a code for the token of a browser tab."
    return [
        post("/api/v1/dashboard", code, Says(about=about_code, answer=CodeAnswer)),
        post(
            "/ui/session",
            session,
            Says(about=about_session, body=SessionRequest, answer=SessionAnswer, is_open=True),
        ),
    ]
