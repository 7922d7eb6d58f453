"""``testnet simulate --real``: the same scenarios on daemons, with signals for faults.

The run itself is ``node/testnet/real.py``'s; here is where it is kept and how it is told.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.cli.exits import Exit
from node.cli.options import Globals
from node.cli.output import Payload, emit, note

if TYPE_CHECKING:
    from node.testnet.network import Plan
    from node.testnet.real import RealReport
    from node.testnet.scenarios import Scenario


def simulate_real(
    options: Globals, plan: "Plan", scenarios: Sequence["Scenario"], seeds: Sequence[int], *, jobs: int | None
) -> int:
    """Run each scenario with each seed; ends with 1 at the first that breaks a rule, whose folder is kept."""
    from node.testnet.interrupts import Interrupts
    from node.testnet.network import in_fp32
    from node.testnet.real import run_real

    for scenario in scenarios:
        for seed in seeds:
            folder = Path(tempfile.mkdtemp(prefix=f"souk-{scenario.name}-{seed}-"))
            interrupts = Interrupts()
            with interrupts.installed():
                here = replace(in_fp32(plan), folder=folder)
                report = run_real(scenario, seed, here, interrupts, jobs=jobs)
            emit(options, report_payload(report), table=report_text)
            if report.faults:
                note(options, f"homes and logs of the nodes: {folder}")
                return Exit.FAILED
            shutil.rmtree(folder)
    return Exit.DONE


def report_payload(report: "RealReport") -> dict[str, Any]:  # a JSON object
    books = report.books
    return {
        "schema": 1,
        "scenario": report.scenario,
        "seed": report.seed,
        "jobs": report.jobs,
        "answered": report.answered,
        "continued": report.continued,
        "ordered_again": dict(sorted(report.failures.items())),
        "strikes": dict(sorted(report.strikes.items())),
        "not_applied": list(report.not_applied),
        "contracts": books.contracts,
        "entries": books.entries,
        "promised_microcredits": books.promised,
        "received_microcredits": books.received,
        "wall_s": round(report.wall_s, 1),
        "violations": report.faults,
    }


def report_text(payload: Payload) -> str:
    line = (
        f"{payload['scenario']} seed {payload['seed']}: {payload['answered']} of {payload['jobs']} orders answered"
        f" by daemons, {payload['continued']} by more than one provider; strikes: {_counts(payload['strikes'])};"
        f" ordered again: {_counts(payload['ordered_again'])}; {payload['contracts']} contracts;"
        f" {payload['wall_s']:.0f} s"
    )
    left = [f"not applied: {', '.join(payload['not_applied'])}"] if payload["not_applied"] else []
    broken = [f"broken rule: {violation}" for violation in payload["violations"]]
    return "\n".join([line, *left, *broken])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"
