"""One order while it runs: what its user is told goes into the journal, too, and it can be cancelled by others."""

from collections.abc import Callable

import trio

from node.market.journal import JobRecord
from node.market.order import JobEvent
from node.metrics import JobState
from protocol.units import JobId, UnixMs


class OrderTrace:
    """Stands between the requester and an order's sink. ``scope`` is what the order runs in."""

    def __init__(
        self, record: JobRecord, sink: trio.MemorySendChannel[JobEvent], now_ms: Callable[[], UnixMs]
    ) -> None:
        self.record = record
        self._sink = sink
        self._now_ms = now_ms
        self.scope = trio.CancelScope()
        self.was_cancelled = False
        self._over = trio.Event()

    @property
    def job_id(self) -> JobId:
        return self.record.job_id

    async def send(self, event: JobEvent) -> None:
        """Note an event and tell the user. Raises: trio.BrokenResourceError (nobody reads)."""
        self.record.hear(event, self._now_ms())
        await self._sink.send(event)

    async def cancel(self) -> None:
        """End the order as if its user had left; return when it has ended."""
        self.was_cancelled = True
        self.scope.cancel()
        await self._over.wait()

    def end(self, state: JobState, *, code: str, message: str) -> None:
        """Note how the order ended: nothing follows."""
        self.record.end(state, self._now_ms(), code=code, message=message)
        self._over.set()
