"""Many simulated runs, in as many processes as there are cores, and what they showed together."""

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from node.testnet.scenarios import SCENARIOS
from node.testnet.simulation import Report, simulate

# Rules whose breach means that a user's job, or a part of its answer, is gone.
LOST_RULES: Final = frozenset(
    {
        "an order never ended",
        "an order ended too late",
        "an order ended in another error",
        "an order was not filled",
        "the answer is not the true one",
        "a finished answer is not whole",
        "a node ended by itself",
    }
)
PAID_TWICE_RULES: Final = frozenset({"tokens paid twice", "contract accepted twice", "contract executed twice"})


def run_seeds(
    name: str,
    seeds: Iterable[int],
    *,
    jobs: int | None = None,
    only: frozenset[str] | None = None,
    processes: int = 1,
) -> Iterator[Report]:
    """Yield the report of each seed, in this order; ``jobs`` and ``only`` as ``simulate`` takes them."""
    run = partial(run_quietly, name, jobs=jobs, only=only)
    if processes == 1:
        yield from map(run, seeds)
        return
    # Spawned: a forked child would have trio's and the tests' state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(run, seeds)
        finally:
            # Whoever stops at the first violation does not wait for the seeds behind it.
            pool.shutdown(wait=True, cancel_futures=True)


def run_quietly(name: str, seed: int, *, jobs: int | None = None, only: frozenset[str] | None = None) -> Report:
    """Simulate while nodes log nothing: what they would say of faults is no news here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return simulate(SCENARIOS[name], seed, jobs=jobs, only=only)
    finally:
        logging.disable(before)


@dataclass(slots=True)
class Tally:
    """Sums over runs of one scenario."""

    runs: int = 0
    orders: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    """How often each rule was broken."""
    contracts: int = 0
    moved: int = 0
    packets: int = 0
    packets_lost: int = 0
    skew_s: float = 0.0
    stranger_skew_s: float = 0.0
    last_end_s: float = 0.0
    virtual_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, report: Report) -> None:
        self.runs += 1
        self.orders += report.orders
        self.faults += report.faults
        self.rules.update(it.rule for it in report.violations)
        self.contracts += report.contracts
        self.moved += report.moved
        self.packets += report.packets
        self.packets_lost += report.packets_lost
        self.skew_s = max(self.skew_s, report.skew_s)
        self.stranger_skew_s = max(self.stranger_skew_s, report.stranger_skew_s)
        self.last_end_s = max(self.last_end_s, report.last_end_s)
        self.virtual_s += report.virtual_s
        self.cpu_s += report.cpu_s

    @property
    def jobs(self) -> int:
        """Orders that a node took; one that was down takes none."""
        return self.orders.total() - self.orders["not_placed"]

    @property
    def crashes(self) -> int:
        return self.faults["kill"] + self.faults["power cut"]

    @property
    def lost(self) -> int:
        return self.orders[""] + sum(self.rules[rule] for rule in LOST_RULES)

    @property
    def paid_twice(self) -> int:
        return sum(self.rules[rule] for rule in PAID_TWICE_RULES)

    def lines(self) -> list[tuple[str, str]]:
        """Return (what, value) of everything that was counted."""
        ends = ", ".join(f"{count} {how}" for how, count in sorted(self.orders.items()) if how != "not_placed")
        others = self.rules.total() - sum(self.rules[rule] for rule in LOST_RULES | PAID_TWICE_RULES)
        faults = self.faults
        clocks = f"at the start up to {self.skew_s:.0f} s off"
        if self.stranger_skew_s:
            clocks += f", those of strangers up to {self.stranger_skew_s:.0f} s"
        crashes = f"{self.crashes} ({faults['power cut']} of them power cuts)"
        lines = [
            ("jobs", f"{self.jobs} in {self.runs} seeds: {ends}; {self.orders['not_placed']} more at nodes down"),
            ("jobs lost", f"{self.lost}"),
            ("paid or settled twice", f"{self.paid_twice}"),
            ("other rules broken", f"{others}"),
            ("contracts", f"{self.contracts}; {self.moved} jobs went on under a second one"),
            ("crashes", crashes),
            ("partitions", f"{faults['partition']} ({faults['one-way partition']} one-way)"),
            ("other faults", _counts(faults, {"kill", "power cut", "partition", "one-way partition"})),
            ("clocks", f"{clocks}; {faults['clock jump']} jumps of up to 300 s"),
        ]
        if self.packets:
            share = self.packets_lost / self.packets
            lines.append(("packets", f"{self.packets} sent, {self.packets_lost} lost ({share:.1%})"))
        ratio = self.virtual_s / max(self.cpu_s, 1e-9)
        return [
            *lines,
            ("longest time from the last fault to a job's end", f"{self.last_end_s:.1f} virtual s"),
            ("time", f"{self.virtual_s:.0f} virtual s in {self.cpu_s:.0f} s of CPU, {ratio:.0f} times real time"),
        ]


def _counts(faults: Counter[str], but: set[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()) if kind not in but) or "none"
