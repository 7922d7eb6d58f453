"""``top``: the node at a glance, redrawn whenever the daemon says something new."""

from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Final

import click

from node.cli import watch
from node.cli.client import Daemon, find_daemon
from node.cli.durations import duration_s
from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, duration, facts, money, short, size

_JOBS_SHOWN: Final = 15
_PEERS_SHOWN: Final = 10


@click.command(cls=SoukCommand)
@click.option("--once", is_flag=True, help="Show the present state and end.")
@click.option(
    "--interval", callback=duration_s, metavar="TIME", help="How often to show it; a second unless you say."
)
@pass_globals
def top(options: Globals, once: bool, interval: float | None) -> int:
    """Watch devices, jobs, peers and earnings; q or Ctrl-C ends it.

    -o jsonl prints every snapshot as a line. Where nobody looks, one is printed, as with --once.
    """
    watch.show(options, _snapshots(find_daemon(options), interval or 0), screen, once=once)
    return Exit.DONE


def _snapshots(daemon: Daemon, every_s: float) -> Generator[Payload, None, None]:
    """Yield the node's state with its peers. Raises: CliError: the daemon is gone."""
    with closing(watch.snapshots(daemon)) as shots:
        for shot in watch.thinned(shots, every_s):
            yield {**shot, "peers": daemon.get("/api/v1/peers").get("peers", [])}


def screen(shot: Payload) -> str:
    """Return a snapshot as text."""
    status: Mapping[str, Any] = shot.get("status") or {}
    jobs = status.get("jobs") or {}
    head = facts(
        [
            ("node", f"{status.get('name')} ({'ready' if status.get('ready') else 'not ready'})"),
            *((f"! {name}", text) for name, text in (status.get("problems") or {}).items()),
            ("up", duration(status.get("uptime_s"))),
            ("jobs", f"{jobs.get('running', 0)} running, {jobs.get('waiting', 0)} waiting"),
            ("peers", f"{status.get('peers_connected')} connected"),
            (
                "money",
                f"earned {money(status.get('earned_microcredits'))}, "
                f"spent {money(status.get('spent_microcredits'))}",
            ),
        ]
    )
    tables = (
        _devices(status.get("devices") or ()),
        _jobs(shot.get("jobs") or (), int(shot.get("at_ms") or 0)),
        _peers(shot.get("peers") or ()),
    )
    return "\n\n".join([head, *(table for table in tables if table)])


def _devices(devices: Any) -> str:  # JSON of the daemon
    rows = [
        [
            f"{it.get('kind')}:{it.get('index')}",
            it.get("name"),
            size(it.get("memory_free_bytes")),
            size(it.get("memory_total_bytes")),
        ]
        for it in devices
    ]
    return columns(("DEVICE", "NAME", "FREE", "MEMORY"), rows) if rows else ""


def _jobs(jobs: Any, now_ms: int) -> str:  # JSON of the daemon
    rows = [
        [
            short(it.get("job_id")),
            it.get("role"),
            it.get("model"),
            short(it.get("peer_id")),
            it.get("code") or it.get("state"),
            it.get("tokens_out"),
            duration(max(0, (it.get("ended_ms") or now_ms) - it.get("started_ms", now_ms)) / 1000),
            it.get("cost_microcredits"),
        ]
        for it in jobs[:_JOBS_SHOWN]
    ]
    return columns(("JOB", "ROLE", "MODEL", "PEER", "STATE", "OUT", "TOOK", "µc"), rows) if rows else ""


def _peers(peers: Any) -> str:  # JSON of the daemon
    rows = [
        [
            it.get("name") or short(it.get("peer_id")),
            it.get("connected"),
            f"{it.get('slots_free', '-')}/{it.get('slots_total', '-')}",
            it.get("queue_ms"),
            ", ".join(model.get("name", "") for model in it.get("models") or ()),
        ]
        for it in peers[:_PEERS_SHOWN]
    ]
    return columns(("PEER", "CONNECTED", "SLOTS", "QUEUE MS", "MODELS"), rows) if rows else ""
