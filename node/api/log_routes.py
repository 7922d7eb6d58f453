"""``/api/v1/logs``: the newest lines of the node's log, and at ``/api/v1/logs/events`` those that come as well.

The lines are those of this run, as far as ``node.logs.LogRing`` keeps them. A reader that is slower than the log
misses lines: their numbers show it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Final, Literal

import trio
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from node.api.answers import json_response
from node.api.errors import ApiError, ClientGoneError
from node.api.intake import Readers, follow_unless_gone, read_body
from node.api.operations import Operation, Says, get, read_query
from node.api.services import Services
from node.api.sessions import Sessions
from node.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream, event_bytes
from node.api.views import LogLine, LogsAnswer, View
from node.logs import RING_LINES, Line
from protocol.units import MS_PER_S

EVENTS_PATH: Final = "/api/v1/logs/events"
ID_SHOWN_CHARACTERS: Final = 16
"""Of an id that is cut, what a line shows of it."""


class LogsQuery(View, frozen=True, kw_only=True):
    """Which lines somebody wants: those for which all of it holds."""

    after: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    """Only with a higher number."""
    limit: Annotated[int, Meta(ge=1, le=RING_LINES)] = 200
    """At most so many, the newest."""
    since_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """Not older than this."""
    level: Literal["debug", "info", "warning", "error"] = "debug"
    """This or worse."""
    job: Annotated[str, Meta(pattern="^[0-9a-fA-F]{4,64}$")] | None = None
    """The start of a job's or contract's id: lines that name one of the job's."""
    grep: Annotated[str, Meta(max_length=256)] = ""
    """With this text, in whatever case."""


def log_routes(services: Services, sessions: Sessions) -> list[Operation]:
    """Return the log and the stream of it."""

    async def logs(request: Request) -> Response:
        query = read_query(request, LogsQuery)
        found = LogReader(services, query).next_lines()
        return json_response(LogsAnswer(lines=tuple(found[-query.limit :])))

    about_lines = "The newest lines of the node's log, those that are asked for."
    about_events = "The same lines, and those that come, as events."
    return [
        get("/api/v1/logs", logs, Says(about=about_lines, query=LogsQuery, answer=LogsAnswer)),
        get(
            EVENTS_PATH,
            LogEvents(services, sessions),
            Says(about=about_events, query=LogsQuery, events=LogLine),
        ),
    ]


class LogReader:
    """Reads on where it ended."""

    def __init__(self, services: Services, query: LogsQuery) -> None:
        self._services, self._query = services, query
        self._seen = query.after
        self._at_ms_min = 0 if query.since_s is None else services.unix_ms() - round(query.since_s * MS_PER_S)
        self._names: frozenset[str] | None = None
        self._level = logging.getLevelNamesMapping()[query.level.upper()]

    def next_lines(self) -> list[LogLine]:
        """Return what has come since the last call and is asked for. Raises: ApiError (at first: no such job)."""
        if self._query.job is not None:
            self._names = self._find_names(self._query.job.lower())
        new = [line for line in self._services.log_lines.newest(RING_LINES) if line.number > self._seen]
        if new:
            self._seen = new[-1].number
        return [
            LogLine(number=it.number, at_ms=it.at_ms, level=it.level, text=it.text)
            for it in new
            if self._is_wanted(it)
        ]

    def _is_wanted(self, line: Line) -> bool:
        return (
            line.at_ms >= self._at_ms_min
            and logging.getLevelNamesMapping().get(line.level.upper(), self._level) >= self._level
            and self._query.grep.casefold() in line.text.casefold()
            and (self._names is None or any(name in line.text for name in self._names))
        )

    def _find_names(self, prefix: str) -> frozenset[str]:
        """Return how lines name the job; a contract of its may be younger than this reader."""
        found = self._services.view.find_jobs(prefix)
        if not found and self._names is not None:
            # The journal has dropped the job under its reader, whose lines may still come.
            return self._names
        if not found:
            raise ApiError(
                f"no job among this node's newest has an id that starts with {prefix}; souk job ls has them",
                status=404,
                code="job_not_found",
                param="job",
            )
        ids = {trace.job.job_id for trace in found} | {
            step.contract_id for trace in found for step in trace.timeline if step.contract_id is not None
        }
        return frozenset(it[:ID_SHOWN_CHARACTERS] for it in ids)


class LogEvents:
    """The stream, as an ASGI app: it sleeps until a line comes."""

    def __init__(self, services: Services, sessions: Sessions) -> None:
        self._services, self._sessions = services, sessions
        self._readers = Readers("the log")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query, replaced = read_query(Request(scope), LogsQuery), self._sessions.replaced
        # Leaving is how readers end a stream.
        with suppress(ClientGoneError), self._readers.place():
            reader = LogReader(self._services, query)
            first = reader.next_lines()[-query.limit :]
            await read_body(receive)
            await follow_unless_gone(receive, replaced, lambda: self._write(EventStream(send), reader, first))

    async def _write(self, stream: EventStream, reader: LogReader, first: list[LogLine]) -> None:
        with self._bell() as next_ring:
            await stream.start({})
            # Shows that the stream stands.
            await stream.write(KEEP_ALIVE + b"".join(map(event_bytes, first)))
            while True:
                rung = next_ring()
                if lines := reader.next_lines():
                    await stream.write(b"".join(map(event_bytes, lines)))
                with trio.move_on_after(KEEP_ALIVE_S) as quiet:
                    await rung.wait()
                if quiet.cancelled_caught:
                    await stream.write(KEEP_ALIVE)

    @contextmanager
    def _bell(self) -> Iterator[Callable[[], trio.Event]]:
        """Give a function that returns an event for the next line; any thread may log it."""
        token = trio.lowlevel.current_trio_token()
        rung = trio.Event()

        def ring() -> None:
            rung.set()

        def next_ring() -> trio.Event:
            nonlocal rung
            rung = trio.Event()
            return rung

        with self._services.log_lines.heard(lambda: token.run_sync_soon(ring, idempotent=True)):
            yield next_ring
