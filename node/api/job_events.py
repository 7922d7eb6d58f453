"""``/api/v1/jobs/events``: every step of every job as a server-sent event, the moment it happens.

Each ``job`` event has an id; ``Last-Event-ID`` brings what a reader missed, from a ring in memory.
"""

import contextlib
from typing import Final

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from node.api.errors import ClientGoneError
from node.api.feed import Events, Feed, FeedEvent
from node.api.intake import Readers, follow_unless_gone, read_body
from node.api.job_views import JobEvent, job_event
from node.api.operations import Operation, Says, get
from node.api.services import Services
from node.api.sessions import Sessions
from node.api.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream
from node.market.journal import JobRecord, Step

PATH: Final = "/api/v1/jobs/events"


def job_events_route(services: Services, sessions: Sessions) -> Operation:
    """Return the route of the stream; it comes before the one of a single job."""
    about = "Follow the steps of all jobs; Last-Event-ID is honoured."
    return get(PATH, JobEvents(services.feed, sessions), Says(about=about, events=JobEvent))


def publish_step(feed: Feed, record: JobRecord, step: Step | None) -> None:
    """Tell whoever follows the jobs where one has come."""
    feed.publish("job", job_event(record, step))


class JobEvents:
    """An ASGI app: it writes for as long as its reader stays, and keeps up."""

    def __init__(self, feed: Feed, sessions: Sessions) -> None:
        self._feed, self._sessions = feed, sessions
        self._readers = Readers("the events of the jobs")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream, replaced = EventStream(send), self._sessions.replaced
        # Leaving is how readers end a stream.
        with contextlib.suppress(ClientGoneError), self._readers.place():
            await read_body(receive)
            with self._feed.subscribe(Headers(scope=scope).get("last-event-id")) as (missed, events):
                await follow_unless_gone(receive, replaced, lambda: self._write(stream, missed, events))

    async def _write(self, stream: EventStream, missed: list[FeedEvent], events: Events) -> bool:
        """Return when the reader fell behind."""
        await stream.start({})
        # Shows that the stream stands: what happens from here on is told.
        await stream.write(KEEP_ALIVE + b"".join(event.lines(self._feed.run) for event in missed))
        while True:
            with trio.move_on_after(KEEP_ALIVE_S) as quiet:
                try:
                    event = await events.receive()
                except trio.EndOfChannel:
                    break
            await stream.write(KEEP_ALIVE if quiet.cancelled_caught else event.lines(self._feed.run))
        await stream.end()
        return True
