"""``job submit``, ``result``, ``rerun`` and ``validate``: jobs that the daemon runs without this command.

Files of specs are ``spec_files.py``'s; what is kept, and how long, the daemon's (``node/api/detached.py``).
"""

import json
import sys
from typing import Any, Final
from urllib.parse import quote

import click

from node.cli.answer import refusal_text
from node.cli.client import EXIT_OF_CODE, ApiError, Daemon, find_daemon
from node.cli.completion import complete_job
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, duration, emit, harmless, money, note, short
from node.cli.quote import quotes_table
from node.cli.spec_files import SpecFile, read_spec_file

# Of one question for a job that runs, well within what the daemon may be silent for.
WAIT_S: Final = 20
_WAITED: Final = click.option("--wait", is_flag=True, help="Wait for its end and print what came of it.")
_KEYED: Final = click.option(
    "--key", metavar="TEXT", help="Idempotency-Key: the same key makes one job, however often it is sent."
)
_SPEC: Final = click.argument("spec", metavar="SPEC|-")
_SET: Final = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one field of the spec; may be repeated."
)


@click.command("submit", cls=SoukCommand)
@_SPEC
@_SET
@click.option("--dry-run", is_flag=True, help="Check the spec and ask peers for their price; nothing runs.")
@_WAITED
@_KEYED
@pass_globals
def submit(
    options: Globals, spec: str, settings: tuple[str, ...], dry_run: bool, wait: bool, key: str | None
) -> int:
    """Order the job that SPEC describes, a TOML or JSON file; print its id, and nothing else.

    It runs in the daemon, whether this command stays or not. The result stays in the daemon's memory for a while
    (api.results_keep_s); a restart forgets it, not what was paid.
    """
    read = read_spec_file(spec)
    read.override(settings)
    read.check()
    daemon = find_daemon(options)
    if dry_run:
        return _quote(options, daemon, read)
    return _order(options, daemon, "/api/v1/jobs", body=read.table, key=key, wait=wait)


@click.command("rerun", cls=SoukCommand)
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@_WAITED
@_KEYED
@pass_globals
def rerun(options: Globals, job_id: str, wait: bool, key: str | None) -> int:
    """Order a submitted JOB once more, by the spec it had; print the new id. 5 when its spec is forgotten."""
    path = f"/api/v1/jobs/{quote(job_id, safe='')}/rerun"
    return _order(options, find_daemon(options), path, body={}, key=key, wait=wait)


@click.command("result", cls=SoukCommand)
@click.argument("job_id", metavar="JOB", shell_complete=complete_job)
@click.option("--wait", is_flag=True, help="Wait for its end.")
@pass_globals
def result(options: Globals, job_id: str, wait: bool) -> int:
    """Print the answer of a submitted JOB, and nothing else: a text as it is, other answers as JSON.

    0 done, 1 failed or not over yet, 5 no such job or forgotten, 6 no peer took it, 7 its deadline passed.
    """
    return _show(options, find_daemon(options), job_id, wait=wait)


@click.command("validate", cls=SoukCommand)
@_SPEC
@_SET
@pass_globals
def validate(options: Globals, spec: str, settings: tuple[str, ...]) -> int:
    """Check SPEC without a daemon and tell every fault with its line; 2 when there is one."""
    read = read_spec_file(spec)
    read.override(settings)
    faults = read.faults()
    problems = [{"where": it.where, "field": it.field, "message": it.message} for it in faults]
    payload = {"schema": 1, "valid": not faults, "problems": problems}
    if faults and options.output == "table":
        raise CliError("\n  ".join(["this spec would be refused:", *map(str, faults)]), Exit.USAGE)
    emit(options, payload, table=lambda _: f"{read.name}: a {read.table['task']} job for {read.table['model']}")
    return Exit.USAGE if faults else Exit.DONE


def _quote(options: Globals, daemon: Daemon, read: SpecFile) -> int:
    model, where = read.table["model"], read.table.get("souk", {}).get("on", "any")
    own = [it for it in daemon.get("/api/v1/models")["models"] if it["local"]]
    if where == "local" or (where == "any" and any(model in (it["name"], it["model_id"]) for it in own)):
        note(options, "it would run on this node's own devices, without a contract and for nothing")
        emit(options, {"schema": 1, "model": model, "quotes": []}, rows="quotes", table=lambda _: "")
        return Exit.DONE
    try:
        payload = daemon.request("POST", "/api/v1/jobs/quote", read.table)
    except ApiError as exc:
        raise CliError(refusal_text(exc), exc.code) from exc
    emit(options, payload, rows="quotes", table=quotes_table)
    return Exit.DONE if any(it.get("code") is None for it in payload["quotes"]) else Exit.NOBODY_WILLING


def _order(
    options: Globals,
    daemon: Daemon,
    path: str,
    *,
    body: dict[str, Any],
    key: str | None,
    wait: bool,
) -> int:
    headers = {} if key is None else {"Idempotency-Key": key}
    payload = daemon.request("POST", path, body, headers=headers)
    if not payload["is_new"]:
        note(options, "an earlier order with this key made the job already")
    if not wait:
        emit(options, payload, table=lambda found: str(found["job_id"]))
        return Exit.DONE
    note(options, f"job {payload['job_id']}")
    return _show(options, daemon, payload["job_id"], wait=True)


def _show(options: Globals, daemon: Daemon, job_id: str, *, wait: bool) -> int:
    """Print what came of a job, and end as it did. Raises: CliError."""
    path = f"/api/v1/jobs/{quote(job_id, safe='')}/result"
    try:
        payload = daemon.get(f"{path}?wait_s={WAIT_S if wait else 0}")
        while wait and not payload["is_over"]:
            payload = daemon.get(f"{path}?wait_s={WAIT_S}")
    except CliError as exc:
        if not (wait and daemon.deadline.is_over and exc.code is Exit.DEADLINE):
            raise
        raise CliError(
            f"not over within --timeout; the job goes on, and costs: souk job result {job_id}, or souk job cancel "
            f"{job_id}",
            exc.code,
        ) from exc
    except KeyboardInterrupt:
        raise CliError(
            f"not waiting any more; the job goes on: souk job result {job_id}, or souk job cancel {job_id}",
            Exit.INTERRUPTED,
        ) from None
    if options.output != "table":
        emit(options, payload, table=_nothing)
    if not payload["is_over"]:
        raise CliError(f"job {payload['job_id']} is not over: {payload['state']}; --wait waits for its end")
    if (error := payload.get("error")) is not None:
        code = EXIT_OF_CODE.get(error["code"], Exit.FAILED)
        refusal = ApiError(error, status=0, details=payload.get("details") or {})
        raise CliError(f"job {payload['job_id']} {payload['state']}: {refusal_text(refusal)}", code)
    _print_answer(options, payload["answer"])
    return Exit.DONE


def _nothing(_payload: Payload) -> str:
    return ""


def _print_answer(options: Globals, answer: dict[str, Any]) -> None:  # JSON of the daemon
    souk = answer["souk"]
    if options.output == "table":
        if (text := answer.get("text")) is None:
            told = {name: value for name, value in answer.items() if name not in ("schema", "souk", "usage")}
            text = json.dumps(told, ensure_ascii=False)
        elif sys.stdout.isatty():
            text = harmless(text, keep="\n\t")
        print(text, end="" if text.endswith("\n") else "\n")
    who, cost = short(souk.get("peer")), money(souk.get("cost_microcredits"))
    note(options, f"answered by {who} · {cost} · {duration(souk.get('duration_ms', 0) / 1000)}")
