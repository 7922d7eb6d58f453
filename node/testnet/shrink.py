"""From a run that broke a rule to a short one that breaks it, too: orders and faults are left out one by one.

Every order and every fault draws from a generator of its own, so leaving one out changes the others only by what
happens in the world. A run ends at its first violation; what would have come after it is gone at once.
"""

from dataclasses import dataclass
from typing import Final

from node.testnet.campaign import run_quietly
from node.testnet.simulation import Report

RUNS_MAX: Final = 60
"""A run takes a second or two, and somebody waits for this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """The shortest run that was found, and how many were tried."""

    report: Report
    runs: int


def shrink(report: Report, *, jobs: int | None = None, runs_max: int = RUNS_MAX) -> Shrunk:
    """Return a run of the same seed that breaks the same rule with as few orders and faults as ``runs_max`` find.

    ``report`` has a violation; ``jobs`` is what it was made with.
    """
    best, runs = report, 0
    chunk = max(len(best.items) // 2, 1)
    while True:
        start, is_shorter = 0, False
        while start < len(best.items) and runs < runs_max:
            kept = best.items[:start] + best.items[start + chunk :]
            tried = run_quietly(report.scenario, report.seed, jobs=jobs, only=frozenset(kept))
            runs += 1
            if tried.violations and tried.violations[0].rule == report.violations[0].rule:
                best, is_shorter = tried, True
            else:
                start += chunk
        if runs >= runs_max or (chunk == 1 and not is_shorter):
            return Shrunk(report=best, runs=runs)
        chunk = max(chunk // 2, 1)
