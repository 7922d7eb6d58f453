"""Which jobs of one loaded model hold a slot, how long the others waited for theirs, and what the cache holds.

The daemon's own account of what the worker's scheduler does: slots go to jobs in the order in which they were
started. It lags behind the worker by a frame on the socket, and works for every engine alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from node.execution.job_meter import JobMeter


class Seats:
    """The jobs of one model; the first ``slots`` of them hold the slots."""

    def __init__(self, slots: int, on_slot: Callable[[float], None]) -> None:
        """``on_slot`` is told how many seconds a job had waited when it got a slot."""
        self._slots, self._on_slot = slots, on_slot
        self._jobs: list[JobMeter] = []

    @contextmanager
    def hold(self, job: JobMeter) -> Iterator[None]:
        """Give a job that starts now its place until it ends; who waits longest gets the slot then."""
        self._jobs.append(job)
        if len(self._jobs) <= self._slots:
            self._on_slot(0.0)
        try:
            yield
        finally:
            index = self._jobs.index(job)
            del self._jobs[index]
            if index < self._slots <= len(self._jobs):
                self._on_slot(trio.current_time() - self._jobs[self._slots - 1].began_at)

    @property
    def tokens_held(self) -> int:
        """What the jobs that answer now have in the cache."""
        return sum(job.tokens_held for job in self._jobs)
