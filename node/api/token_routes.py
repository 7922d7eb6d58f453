"""``/api/v1/token/rotate``: a new token for the home, followed at once."""

from collections.abc import Awaitable, Callable

import trio
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.operations import Operation, Says, post
from node.api.sessions import Sessions
from node.api.views import View


class TokenAnswer(View, frozen=True, kw_only=True):
    """The token itself is in the home's file, and in no answer."""

    schema: int = 1
    file: str
    """Where it is, on the daemon's machine."""
    rotated: bool = True


def token_routes(sessions: Sessions, renew: Callable[[], Awaitable[str]], file: str) -> list[Operation]:
    """Return the route; ``renew`` writes a new token to ``file`` of the home and returns it."""
    turn = trio.Lock()

    async def rotate(_request: Request) -> Response:
        # Of two at once the one that was written first could be followed last. Shielded: a client that leaves
        # in between must not leave a file that says something else than this process follows.
        with trio.CancelScope(shield=True):
            async with turn:
                sessions.follow(await renew())
        return json_response(TokenAnswer(file=file))

    about = "Make a new token: the old one, and those of browser tabs, open nothing any more."
    return [post("/api/v1/token/rotate", rotate, Says(about=about, answer=TokenAnswer))]
