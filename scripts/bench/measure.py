"""What every benchmark shares: rows of samples, the machine they were taken on, and how both are printed.

What is measured stands in the scripts; where nodes come from in ``local_net.py``.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from node.testnet.machine import Machine, describe_machine

ROOT: Final = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: a sample per round."""

    name: str
    unit: str
    samples: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "median": statistics.median(self.samples),
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": list(self.samples),
        }


@dataclass(slots=True)
class Report:
    """Rows of one benchmark; make it before anything is measured, since it notes the load."""

    benchmark: str
    machine: Machine = field(default_factory=lambda: describe_quiet_machine())
    settings: dict[str, object] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, unit: str, samples: Sequence[float]) -> None:
        self.rows.append(Row(name=name, unit=unit, samples=tuple(samples)))

    def print(self, *, as_json: bool) -> None:
        value = {
            "schema": 1,
            "benchmark": self.benchmark,
            "machine": asdict(self.machine),
            "load_1min_after": os.getloadavg()[0],
            "settings": self.settings,
            "rows": [row.as_json() for row in self.rows],
        }
        print(json.dumps(value) if as_json else format_reports([value]), flush=True)


def describe_quiet_machine() -> Machine:
    """Return the facts about this machine; says so when it is busy already."""
    machine = describe_machine()
    if machine.load_1min > machine.cores:
        busy = f"load average {machine.load_1min:.2f} on {machine.cores} cores: others work here too"
        print(f"warning: {busy}", file=sys.stderr)
    return machine


def parser_of(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object in one line")
    parser.add_argument("--rounds", type=int, default=rounds, help="samples of each row (default %(default)s)")
    return parser


def format_reports(reports: Sequence[dict[str, Any]]) -> str:  # JSON as ``Report.print`` writes it
    """Return one table of all rows, with the machine above it."""
    if not reports:
        return "no benchmark has finished"
    lines = []
    machines = {tuple(report["machine"][key] for key in ("cpu", "cores", "system")) for report in reports}
    for cpu, cores, system in sorted(machines):
        lines.append(f"{cpu}, {cores} cores, {system}")
    first = reports[0]["machine"]
    loads = ", ".join(f"{report['machine']['load_1min']:.2f}" for report in reports)
    lines += [
        f"torch {first['torch']}, python {first['python']}, commit {first['commit']}, {first['date']}",
        f"load average at the start of each: {loads}",
        "",
    ]
    cells = [("BENCHMARK", "WHAT", "MEDIAN", "MIN", "MAX", "N", "UNIT")]
    for report in reports:
        for row in report["rows"]:
            figures = (_figure(row[key]) for key in ("median", "min", "max"))
            count = str(len(row["samples"]))
            cells.append((report["benchmark"], row["name"], *figures, count, row["unit"]))
    widths = [max(len(line[column]) for line in cells) for column in range(7)]
    for line in cells:
        texts = (
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
