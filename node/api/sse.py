"""Server-sent events on the wire: the bytes of events and comments, and a response that is written bit by bit."""

from typing import Final

import msgspec
from starlette.types import Send

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": waiting\n\n"
KEEP_ALIVE_S: Final = 10.0
"""Proxies and SDKs give up on a silent connection after 30 s at the earliest."""


def event_bytes(value: msgspec.Struct) -> bytes:
    """Return one ``data:`` event; JSON has no raw line break that could end it early."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def comment_bytes(value: msgspec.Struct) -> bytes:
    """Return one ``: souk {json}`` comment, which OpenAI's clients skip."""
    return b": souk " + msgspec.json.encode(value) + b"\n\n"


class EventStream:
    """A 200 answer in ``text/event-stream``; comments sent before it starts wait for it."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send
        self._early: list[bytes] = []

    async def start(self, headers: dict[str, str]) -> None:
        """Send the head, and what waited for it."""
        fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"} | headers
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
        if self._early:
            await self.write(b"".join(self._early))
            self._early.clear()

    async def comment(self, value: msgspec.Struct) -> None:
        """Send a comment, or keep it until the start."""
        if self.started:
            await self.write(comment_bytes(value))
        else:
            self._early.append(comment_bytes(value))

    async def write(self, data: bytes) -> None:
        """Send bytes of whole events; a client that reads slowly holds this up."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
