"""``compare``: one central node beside the mesh, with the same requests, undisturbed and with a node killed.

The runs are ``node/testnet/compare.py``'s; here is what they are told by.
"""

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, emit, note
from node.cli.testnet import make_plan

if TYPE_CHECKING:
    from node.testnet.compare import Comparison
    from node.testnet.machine import Machine

_NOTES: Final = (
    "All nodes share this machine, each provider with one thread: latency and speed are those of one machine, not",
    "of several; what differs is COMPLETE. A kill is a SIGKILL of a node in mid-answer; it stays dead until",
    "its arm has ended. Arrivals are Poisson and wait for nothing, no client tries again, and the clients'",
    "own node is never killed. FIRST: from the request to the first text. NEXT: between two pieces of an answer.",
    "Both are of every text that came, also of answers cut later. TOKENS/S: of whole answers, by the time of the",
    "arm. µc/M: everything promised, by a million tokens in and out of whole answers.",
)


@click.command(cls=SoukCommand)
@click.option("--nodes", type=click.IntRange(2, 16), default=4, show_default=True, help="Providers of the mesh.")
@click.option(
    "--requests", type=click.IntRange(2), default=24, show_default=True, help="Of each arm in each round."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="All arms again, new prompts."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Requests that arrive, on average, in the time of one answer.",
)
@click.option("--max-tokens", type=click.IntRange(2), default=48, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of prompts, samples, arrivals and the kill.")
@click.option("--model", metavar="NAME", help="Which model to ask; else the demo's.")
@click.option("--models-dir", type=click.Path(path_type=Path), help="The providers' store; else the demo's.")
@pass_globals
def compare(options: Globals, /, nodes: int, model: str | None, models_dir: Path | None, **asked: int) -> int:
    """Compare one central node with the mesh, with and without a node killed.

    Starts its own nodes and stops them. Ends with 1 when an answer's text is not that of the undisturbed node.
    """
    from node.models.import_demo import DEMO_MODEL
    from node.testnet.compare import UNDISTURBED, run_compare
    from node.testnet.compare_figures import sum_up
    from node.testnet.compare_workload import draw_workload
    from node.testnet.interrupts import Interrupts
    from node.testnet.machine import describe_machine
    from node.testnet.network import in_fp32

    name = model or DEMO_MODEL
    machine = describe_machine()
    workloads = [
        draw_workload(
            f"{asked['seed']}/{number}",
            name,
            requests=asked["requests"],
            concurrency=asked["concurrency"],
            tokens_max=asked["max_tokens"],
        )
        for number in range(asked["rounds"])
    ]
    interrupts = Interrupts()
    with interrupts.installed():
        with interrupts.held():
            folder = Path(tempfile.mkdtemp(prefix="souk-compare-"))
        try:
            plan = make_plan(folder, nodes + 1, nodes, models=(name,), models_dir=models_dir)
            comparison = run_compare(
                in_fp32(plan), workloads, interrupts, on_progress=lambda text: note(options, text)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    settings = {"model": name, "dtype": "fp32", "nodes": nodes, **asked}
    figures = [asdict(arm) for arm in sum_up(comparison.rounds, UNDISTURBED)]
    emit(options, make_payload(settings, machine, comparison, figures), rows="arms", table=format_table)
    return Exit.DONE if all(arm["same_text"] == arm["complete"] for arm in figures) else Exit.FAILED


def make_payload(
    settings: dict[str, Any], machine: "Machine", comparison: "Comparison", figures: list[dict[str, Any]]
) -> dict[str, Any]:  # a JSON object
    return {
        "schema": 1,
        "settings": settings,
        "machine": asdict(machine),
        "load_1min_after": os.getloadavg()[0],
        "alone_s": comparison.alone_s,
        "killed": [it.killed for it in comparison.rounds if it.killed],
        "arms": figures,
    }


def format_table(payload: Payload) -> str:
    """Return the table with the machine above it and what must be known to read it below."""
    machine, settings = payload["machine"], payload["settings"]
    head = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, torch {machine['torch']}",
        f"commit {machine['commit']}, {machine['date']}, load average {machine['load_1min']:.2f} before and"
        f" {payload['load_1min_after']:.2f} after",
        f"{settings['model']} in {settings['dtype']}, seed {settings['seed']}; {settings['rounds']} rounds with"
        f" {settings['requests']} requests of at most {settings['max_tokens']} tokens in each arm",
        f"one answer alone takes {payload['alone_s']:.2f} s; in that time {settings['concurrency']} arrive",
    ]
    latencies = ("FIRST P50", "P95", "NEXT P50", "P95", "LONGEST")
    titles = ("ARM", "COMPLETE", "RATE", "SAME TEXT", *latencies, "TOKENS/S", "µc/M")
    rows = [
        [
            arm["arm"],
            f"{arm['complete']} of {arm['requests']}",
            f"{100 * arm['complete'] / arm['requests']:.1f} %",
            arm["same_text"],
            *(_ms(arm[key]) for key in ("first_p50_s", "first_p95_s", "next_p50_s", "next_p95_s", "silence_s")),
            arm["tokens_per_s"],
            "-" if arm["microcredits_per_million"] is None else f"{arm['microcredits_per_million']:,.0f}",
        ]
        for arm in payload["arms"]
    ]
    return "\n".join([*head, "", columns(titles, rows), "", *_NOTES, *_failures(payload)])


def _failures(payload: Payload) -> list[str]:
    lines = []
    for arm in payload["arms"]:
        counts = {how: arm["failures"].count(how) for how in sorted(arm["failures"])}
        told = [f"{count} {how}" for how, count in counts.items()]
        told += [f"{arm['continued']} whole by more than one peer"] if arm["continued"] else []
        lines += [f"{arm['arm']}: {', '.join(told)}"] if told else []
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
