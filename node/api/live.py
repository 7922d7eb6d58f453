"""``/api/v1/events``: what the node does, once a second, to everybody who watches.

A snapshot is made when somebody wants one and shared by all who want it within the same second, so that more tabs
cost a write each. Nothing is kept for a watcher: who reads slowly gets the next snapshot later and misses those
between, and who comes back starts with the present (there is nothing to replay).
"""

import logging
from contextlib import suppress
from typing import Final

import trio
from starlette.types import Receive, Scope, Send

from node.api.errors import ClientGoneError
from node.api.intake import Readers, follow_unless_gone, read_body
from node.api.job_views import Finding
from node.api.operations import Operation, Says, get
from node.api.services import Services
from node.api.sessions import Sessions
from node.api.sse import EventStream, event_bytes
from node.api.views import JobView, ModelView, StatusView, View
from node.api.why_node import why_node
from node.errors import NodeError

PERIOD_S: Final = 1.0
JOBS_MAX: Final = 40
MODELS_MAX: Final = 32
"""With these bounds a snapshot has at most about 32 KiB."""

log = logging.getLogger(__name__)


class Snapshot(View, frozen=True, kw_only=True):
    """The node at one moment; jobs are open ones, then those that began last."""

    schema: int = 1
    at_ms: int
    status: StatusView
    jobs: tuple[JobView, ...]
    models: tuple[ModelView, ...]
    findings: tuple[Finding, ...]
    log_number: int
    """Of the newest log line: ``/api/v1/logs`` has it."""


def live_routes(services: Services, sessions: Sessions) -> list[Operation]:
    """Return the stream of snapshots."""
    about = "What the node does, once a second; nothing is replayed."
    return [get("/api/v1/events", Events(services, sessions), Says(about=about, events=Snapshot))]


class Events:
    """The stream, as an ASGI app."""

    def __init__(self, services: Services, sessions: Sessions) -> None:
        self._services, self._sessions = services, sessions
        self._readers = Readers("the snapshots")
        self._making = trio.Lock()
        self._made_at = -PERIOD_S
        self._event = b""

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        replaced = self._sessions.replaced
        # Leaving is how readers end a stream.
        with suppress(ClientGoneError), self._readers.place():
            await read_body(receive)
            await follow_unless_gone(receive, replaced, lambda: self._write(EventStream(send)))

    async def _write(self, stream: EventStream) -> None:
        first = await self._latest()
        await stream.start({})
        await stream.write(first)
        while True:
            # A clock and no polling: a snapshot is what there is at its second.
            await trio.sleep_until(self._made_at + PERIOD_S)
            try:
                latest = await self._latest()
            except NodeError as exc:
                # It began with 200: an error has no place any more. Who asks again is told.
                log.info("snapshots ended", extra={"cause": str(exc)})
                break
            await stream.write(latest)
        await stream.end()

    async def _latest(self) -> bytes:
        async with self._making:
            if trio.current_time() - self._made_at >= PERIOD_S:
                self._event = event_bytes(await self._snapshot())
                self._made_at = trio.current_time()
            return self._event

    async def _snapshot(self) -> Snapshot:
        view = self._services.view
        jobs = sorted(view.jobs(), key=lambda job: (job.ended_ms is not None, -job.started_ms))
        return Snapshot(
            at_ms=self._services.unix_ms(),
            status=await view.status(),
            jobs=tuple(jobs[:JOBS_MAX]),
            models=tuple(view.models()[:MODELS_MAX]),
            findings=why_node(view.facts()).findings,
            log_number=self._services.log_lines.number,
        )
