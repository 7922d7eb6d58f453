"""What happens on this node, as it happens: a ring of the newest events, and readers with a bounded queue each.

A reader that falls behind is cut off, and comes back with the id of the last event it had: what the ring still
holds since then is told again. Nothing here holds a prompt or an answer.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import msgspec
import trio

RING_EVENTS: Final = 1_000
QUEUE_EVENTS: Final = 256
"""Of one reader, beyond what its connection takes."""
NUMBER_DIGITS_MAX: Final = 18


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event; ``data`` is JSON."""

    number: int
    name: str
    data: bytes

    def lines(self, run: str) -> bytes:
        """Return the event on the wire. ``run`` tells the numbers of one run of the daemon from another's."""
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (run.encode(), self.number, self.name.encode(), self.data)


Events: TypeAlias = trio.MemoryReceiveChannel[FeedEvent]


class Feed:
    """One for each daemon. Publishing is synchronous and never waits."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._ring: deque[FeedEvent] = deque(maxlen=RING_EVENTS)
        self._readers: set[trio.MemorySendChannel[FeedEvent]] = set()
        self._count = 0

    @property
    def readers(self) -> int:
        return len(self._readers)

    def publish(self, name: str, value: msgspec.Struct) -> None:
        """Tell everybody who reads, and keep the event for those who come back."""
        self._count += 1
        event = FeedEvent(number=self._count, name=name, data=msgspec.json.encode(value))
        self._ring.append(event)
        for reader in tuple(self._readers):
            try:
                reader.send_nowait(event)
            except trio.WouldBlock:
                self._readers.discard(reader)
                reader.close()

    @contextmanager
    def subscribe(self, last_id: str | None) -> Iterator[tuple[list[FeedEvent], Events]]:
        """Read along for as long as the block runs: (what came after ``last_id``, what comes from now on).

        How many may is bounded where they come in.
        """
        post, events = trio.open_memory_channel[FeedEvent](QUEUE_EVENTS)
        self._readers.add(post)
        try:
            with post, events:
                yield self._since(last_id), events
        finally:
            self._readers.discard(post)

    def _since(self, last_id: str | None) -> list[FeedEvent]:
        """Return what is kept after an id of this run; a new reader, or one of another run, begins with now."""
        run, _, number = (last_id or "").rpartition("-")
        # Of one that has too many digits Python would refuse to make a number.
        is_ours = run == self.run and number.isascii() and number.isdigit() and len(number) <= NUMBER_DIGITS_MAX
        after = int(number) if is_ours else math.inf
        return [event for event in self._ring if event.number > after]
