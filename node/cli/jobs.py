"""``job``: the newest jobs of this node, one job's timeline, and cancelling. The daemon keeps them in memory.

Ordering a job by its spec and fetching its result is ``detached.py``'s.
"""

from typing import Any
from urllib.parse import quote

import click

from node.cli.client import find_daemon
from node.cli.completion import complete_job
from node.cli.detached import rerun, result, submit, validate
from node.cli.exits import Exit
from node.cli.job_log import ms, print_log, said
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, facts, moment, money, note, short
from node.cli.receipts import bundle_table, fetch_bundle


@click.group(cls=SoukGroup, invoke_without_command=True, commands=[submit, result, rerun, validate])
@click.pass_context
def job(ctx: click.Context) -> int:
    """List, show, follow and cancel jobs; order them by a spec, fetch their results."""
    return ctx.invoke(list_jobs) if ctx.invoked_subcommand is None else Exit.DONE


@job.command("ls")
@click.option("--state", metavar="NAME", help="open, over, or a state such as failed.")
@click.option("--mine", "role", flag_value="requester,local", help="Only this node's own.")
@click.option("--served", "role", flag_value="provider", help="Only those that this node sold.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many.")
@pass_globals
def list_jobs(options: Globals, state: str | None = None, role: str | None = None, limit: int = 20) -> int:
    """List the newest jobs since the daemon's start; `souk receipts ls` has the contracts of all time."""
    wanted = {"state": state, "role": role, "limit": str(limit)}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in wanted.items() if value is not None)
    emit(options, find_daemon(options).get(f"/api/v1/jobs?{query}"), rows="jobs", table=_jobs_table)
    return Exit.DONE


def _jobs_table(payload: Payload) -> str:
    if not payload["jobs"]:
        return "No jobs here. Try: souk run MODEL PROMPT, or souk job ls without options."
    rows = [
        [
            short(it.get("job_id")),
            it.get("role"),
            it.get("model"),
            short(it.get("peer_id")),
            _state(it),
            it.get("tokens_in"),
            it.get("tokens_out"),
            ms(it.get("first_token_ms")),
            _took(it),
            it.get("cost_microcredits"),
            moment(it.get("started_ms")),
        ]
        for it in payload["jobs"]
    ]
    titles = ("JOB", "ROLE", "MODEL", "PEER", "STATE", "IN", "OUT", "FIRST", "TOOK", "µc", "STARTED")
    return columns(titles, rows)


@job.command("show")
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("--receipt", "with_receipt", is_flag=True, help="And the signed messages of its contract.")
@pass_globals
def show(options: Globals, job_id: str, with_receipt: bool) -> int:
    """Show what happened to JOB, given by the first digits of its id or its contract's; 5 when there is none."""
    payload = find_daemon(options).get(f"/api/v1/jobs/{quote(job_id, safe='')}")
    if with_receipt:
        contract_id = payload["job"].get("contract_id")
        payload["bundle"] = None if contract_id is None else fetch_bundle(options, contract_id)
        if contract_id is None:
            note(options, "there is no receipt: the job has no contract")
    emit(options, payload, rows="timeline", table=_timeline)
    return Exit.DONE


def _timeline(payload: Payload) -> str:
    it = payload["job"]
    head = facts(
        [
            ("job", it.get("job_id")),
            ("contract", it.get("contract_id")),
            ("role", it.get("role")),
            ("peer", it.get("peer_id")),
            ("model", it.get("model")),
            ("state", _state(it)),
            ("why", it.get("message")),
            ("tokens", f"{it.get('tokens_in')} in, {it.get('tokens_out')} out"),
            ("cost", money(it.get("cost_microcredits"))),
            ("energy", _energy(it)),
            ("started", moment(it.get("started_ms"))),
            ("took", _took(it)),
        ]
    )
    rows = [
        [
            ms(step["at_ms"] - it["started_ms"]),
            step["step"].replace("_", " "),
            short(step.get("peer_id")),
            said(step),
        ]
        for step in payload["timeline"]
    ]
    left_out = payload.get("steps_left_out")
    tail = f"\n({left_out} steps in the middle are left out)" if left_out else ""
    if payload.get("is_restored"):
        tail += "\n(from before the daemon's start: only what signed messages prove is left of its steps)"
    if payload.get("bundle"):
        tail += f"\n\n{bundle_table(payload['bundle'])}"
    return f"{head}\n\n{columns(('AFTER', 'STEP', 'PEER', ''), rows)}{tail}"


@job.command("logs")
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@pass_globals
def logs(options: Globals, job_id: str, follow: bool) -> int:
    """Print what happened to JOB line by line, and what stood in its way; 5 when there is no such job."""
    print_log(options, find_daemon(options), job_id, follow=follow)
    return Exit.DONE


@job.command("cancel")
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@pass_globals
def cancel(options: Globals, job_id: str) -> int:
    """End JOB, which this node bought or runs for itself; what was generated until then is paid.

    Ends with 1 when it is over already or is a peer's, with 5 when there is none.
    """
    payload = find_daemon(options).request("POST", f"/api/v1/jobs/{quote(job_id, safe='')}/cancel", {})
    emit(options, payload, table=_cancelled)
    if payload["job"].get("state") == "closed":
        note(options, "it was complete before it could be cancelled")
    return Exit.DONE


def _cancelled(payload: Payload) -> str:
    it = payload["job"]
    return f"{it['job_id']} {it['state']}: {it['tokens_out']} tokens, {money(it['cost_microcredits'])}"


def _state(it: dict[str, Any]) -> str:  # JSON of the daemon
    return f"{it['state']} ({it['code']})" if it.get("code") not in (None, it["state"]) else str(it["state"])


def _energy(it: dict[str, Any]) -> str | None:  # JSON of the daemon
    millijoules = it.get("energy_millijoules")
    return None if millijoules is None else f"{millijoules / 1000:,.3f} J"


def _took(it: dict[str, Any]) -> str:  # JSON of the daemon
    return "running" if it.get("ended_ms") is None else ms(it["ended_ms"] - it["started_ms"])
