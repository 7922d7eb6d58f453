"""``testnet simulate``: many nodes in virtual time; the runs themselves are ``node/testnet/simulation.py``'s."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from node.cli.exits import Exit
from node.cli.options import Globals
from node.cli.output import Payload, emit, note

if TYPE_CHECKING:
    from node.testnet.scenarios import Scenario
    from node.testnet.simulation import Report


def simulate_seeds(
    options: Globals, scenarios: Sequence["Scenario"], seeds: Sequence[int], *, jobs: int | None, only: str | None
) -> int:
    """Run each scenario with each seed; ends with 1 at the first that breaks a rule, with its shortest history."""
    from node.testnet.campaign import Tally, run_seeds

    kept = None if only is None else frozenset(only.split(","))
    for scenario in scenarios:
        tally = Tally()
        for report in run_seeds(scenario.name, seeds, jobs=jobs, only=kept):
            tally.add(report)
            emit(options, _report_payload(report), table=_report_text)
            if report.violations:
                if kept is None:
                    _emit_shortest(options, report, jobs)
                return Exit.FAILED
        if len(seeds) > 1:
            note(options, "\n".join(f"{scenario.name}: {what}: {value}" for what, value in tally.lines()))
    return Exit.DONE


def _emit_shortest(options: Globals, report: "Report", jobs: int | None) -> None:
    from node.testnet.shrink import shrink

    note(options, "looking for a shorter run that breaks the same rule …")
    shrunk = shrink(report, jobs=jobs)
    again = f"souk testnet simulate --scenario {report.scenario} --seed {report.seed}"
    again += ("" if jobs is None else f" --jobs {jobs}") + f" --only {','.join(shrunk.report.items) or 'nothing'}"
    payload = {**_report_payload(shrunk.report), "runs": shrunk.runs, "again": again}
    emit(options, payload, table=_shrunk_text)


def _report_payload(report: "Report") -> dict[str, Any]:  # a JSON object
    return {
        "schema": 1,
        "scenario": report.scenario,
        "seed": report.seed,
        "orders": dict(sorted(report.orders.items())),
        "contracts": report.contracts,
        "crashes": report.crashes,
        "partitions": report.partitions,
        "faults": dict(sorted(report.faults.items())),
        "packets": report.packets,
        "packets_lost": report.packets_lost,
        "last_end_s": round(report.last_end_s, 1),
        "virtual_s": round(report.virtual_s, 1),
        "cpu_s": round(report.cpu_s, 2),
        "trace": report.trace,
        "violations": [f"{it.at:.3f} {it.rule}: {it.message}" for it in report.violations],
        "history": [str(event) for event in report.history],
        "items": list(report.items),
    }


def _report_text(payload: Payload) -> str:
    orders = ", ".join(f"{count} {how}" for how, count in payload["orders"].items())
    line = (
        f"{payload['scenario']} seed {payload['seed']}: orders {orders}; {payload['contracts']} contracts,"
        f" {payload['crashes']} crashes, {payload['partitions']} partitions;"
        f" {payload['virtual_s']:.0f} s in {payload['cpu_s']:.2f} s of CPU; trace {payload['trace'][:16]}"
    )
    broken = [f"broken rule at {violation}" for violation in payload["violations"]]
    return "\n".join([line, *payload["history"], *broken])


def _shrunk_text(payload: Payload) -> str:
    items = len(payload["items"])
    last = f"shortest of {payload['runs']} tries, {items} orders and faults; again with: {payload['again']}"
    return "\n".join([_report_text(payload), last])
