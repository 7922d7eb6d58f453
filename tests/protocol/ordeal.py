"""Puts a reader through many mutants: how deep they got, how long it took, what it left behind."""

import gc
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import psutil

from protocol.errors import Reason, RemoteProtocolError

MIB: Final = 1 << 20
RSS_GROWTH_MAX: Final = 32 * MIB
READ_S_P99_MAX: Final = 0.005
WARM_UP: Final = 2_000
# One reading in so many is timed: a list of all would be most of the memory that is looked for.
_TIMED: Final = 4


@dataclass(slots=True)
class Ordeal:
    """What came of all mutants of one reader."""

    name: str
    seed: str
    stages: Counter[str] = field(default_factory=Counter)
    took_s: "array[float]" = field(default_factory=lambda: array("d"))
    rss_growth: int = 0

    def count(self) -> int:
        return self.stages.total()

    def share(self, *stages: str) -> float:
        return sum(self.stages[stage] for stage in stages) / self.count()

    def run(self, mutants: Iterable[bytes], read: Callable[[bytes], object]) -> None:
        """Have ``mutants`` read; whatever leaves the reader but a refusal ends the test and shows its mutant."""
        # CPU time: on a busy machine the slowest one in a hundred would be who else ran.
        clock, before = time.thread_time, 0
        process = psutil.Process()
        for number, mutant in enumerate(mutants):
            if number == WARM_UP:
                gc.collect()
                before = process.memory_info().rss
            timed = number % _TIMED == 0
            began = clock() if timed else 0.0
            try:
                read(mutant)
                stage = "accepted"
            except RemoteProtocolError as exc:
                stage = stage_of(exc)
            except Exception as exc:  # the very thing that is looked for
                raise AssertionError(
                    f"{self.name}: {exc!r} at mutant {number} of seed {self.seed!r}: {mutant.hex()}"
                ) from exc
            if timed:
                self.took_s.append(clock() - began)
            self.stages[stage] += 1
        gc.collect()
        self.rss_growth = max(self.rss_growth, process.memory_info().rss - before if before else 0)

    def p99_s(self) -> float:
        ordered = sorted(self.took_s)
        return ordered[len(ordered) * 99 // 100]

    def verdict(self) -> str:
        """Return the line that is printed, after checking what every reader owes."""
        assert self.rss_growth <= RSS_GROWTH_MAX, f"{self.name}: RSS grew by {self.rss_growth / MIB:.1f} MiB"
        assert self.p99_s() <= READ_S_P99_MAX, f"{self.name}: p99 {self.p99_s() * 1e3:.2f} ms"
        shares = ", ".join(f"{stage} {count / self.count():.1%}" for stage, count in self.stages.most_common())
        return (
            f"{self.count()} mutants, 0 other exceptions, p99 {self.p99_s() * 1e3:.3f} ms of CPU,"
            f" RSS {self.rss_growth / MIB:+.1f} MiB; {shares}"
        )


def stage_of(exc: RemoteProtocolError) -> str:
    """Return how far a refused mutant got: the reason, and of ``encoding`` whether it was msgpack at all."""
    if exc.reason is Reason.ENCODING and exc.args[0].startswith("bytes are not in canonical"):
        return "canonical"
    return exc.reason
