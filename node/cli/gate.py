"""``drain`` and ``resume``: keep peers' jobs out for a while, and let them in again. Own orders are not asked."""

import time
from datetime import datetime
from typing import Any, Final

import click

from node.cli.client import Daemon, find_daemon
from node.cli.durations import duration_s
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, duration, emit, note

LOOK_S: Final = 0.5


@click.command(cls=SoukCommand)
@click.option("--grace", metavar="TIME", callback=duration_s, help="Then hand back what still runs, such as 5m.")
@click.option("--now", is_flag=True, help="Hand back at once what runs.")
@click.option("--no-wait", is_flag=True, help="Do not wait until no job is left.")
@pass_globals
def drain(options: Globals, grace: float | None, now: bool, no_wait: bool) -> int:
    """Take no more jobs of peers, and wait until none is left.

    Without --grace those that run may take as long as they take, if the owner's policy does not end them; one
    that is handed back goes on elsewhere.
    The node stays drained until `souk resume`, or its next start. Ctrl-C ends the waiting alone, --timeout ends
    it with 7, a resume by somebody else with 1.
    """
    if now and grace is not None:
        raise CliError("--now is a grace of nothing: give one of the two", Exit.USAGE)
    daemon = find_daemon(options)
    payload: Payload = daemon.request("POST", "/api/v1/drain", {"grace_s": 0 if now else grace})
    if not no_wait:
        payload = _wait_until_empty(options, daemon, payload)
    emit(options, payload, table=lambda found: gate_text(found["gate"]))
    return Exit.FAILED if payload["gate"]["open"] else Exit.DONE


@click.command(cls=SoukCommand)
@pass_globals
def resume(options: Globals) -> int:
    """Take jobs of peers again; ends with 1 when the owner's policy still keeps them out."""
    payload = find_daemon(options).request("POST", "/api/v1/resume", {})
    emit(options, payload, table=lambda found: gate_text(found["gate"]))
    return Exit.DONE if payload["gate"]["open"] else Exit.FAILED


@click.command(cls=SoukCommand)
@pass_globals
@click.pass_context
def withdraw(ctx: click.Context, _options: Globals) -> int:
    """Take this node's offers back: peers are told, jobs that run go on. The same as souk drain --no-wait."""
    code: int = ctx.invoke(drain, grace=None, now=False, no_wait=True)
    return code


@click.command(cls=SoukCommand)
@pass_globals
@click.pass_context
def publish(ctx: click.Context, _options: Globals) -> int:
    """Offer again what was withdrawn; 1 when the owner's policy keeps peers out. The same as souk resume."""
    code: int = ctx.invoke(resume)
    return code


def gate_text(gate: dict[str, Any]) -> str:  # JSON of the daemon
    """Return in one line whether peers' jobs are taken, and if not, why and until when."""
    if gate["open"]:
        return "open to peers"
    back_s, opens_ms = gate.get("hands_back_in_s"), gate.get("opens_at_ms")
    parts = [f"closed to peers: {'; '.join(gate['reasons'])}"]
    if opens_ms is not None:
        parts.append(f"opens {datetime.fromtimestamp(opens_ms / 1000).astimezone():%a %H:%M}")
    if gate["jobs"]:
        handed_back = "" if back_s is None else f", handed back in {duration(back_s)}"
        parts.append(f"{_jobs(gate['jobs'])} still run{handed_back}")
    return " · ".join(parts)


def _wait_until_empty(options: Globals, daemon: Daemon, payload: Payload) -> Payload:
    told = None
    try:
        while (count := payload["gate"]["jobs"]) and not payload["gate"]["open"]:
            if count != told:
                note(options, f"{_jobs(count)} still run")
                told = count
            time.sleep(daemon.deadline.left_s(LOOK_S))
            payload = daemon.get("/api/v1/gate")
    except CliError as exc:
        if exc.code is not Exit.DEADLINE:
            raise
        raise CliError(
            f"{_jobs(count)} still run; the node stays drained: souk resume opens it", exc.code
        ) from exc
    except KeyboardInterrupt:
        raise CliError(
            "not waiting any more; the node stays drained: souk resume opens it", Exit.INTERRUPTED
        ) from None
    return payload


def _jobs(count: int) -> str:
    return f"{count} {'job' if count == 1 else 'jobs'} of peers"
