"""``top``: the node at a glance, redrawn whenever the daemon says something new, which is once a second.

Nothing here has a clock: the daemon's stream of snapshots is one, and a node that is gone ends it.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

import click

from node.cli.client import BrokenOffError, Daemon, Data, find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, duration, emit, facts, harmless, money, short, size

_JOBS_SHOWN: Final = 15
_PEERS_SHOWN: Final = 10


@click.command(cls=SoukCommand)
@click.option("--once", is_flag=True, help="Show the present state and end.")
@pass_globals
def top(options: Globals, once: bool) -> int:
    """Watch devices, jobs, peers and earnings; q or Ctrl-C ends it.

    -o jsonl prints every snapshot as a line. Where nobody looks, one is printed, as with --once.
    """
    shots = snapshots(find_daemon(options))
    with closing(shots):  # type: ignore[type-var]  # a generator
        if options.output == "jsonl" and not once:
            _follow_lines(options, shots)
        elif once or options.output != "table" or not sys.stdout.isatty():
            emit(options, next(shots), table=screen)
        else:
            _follow_screen(shots)
    return Exit.DONE


def snapshots(daemon: Daemon) -> Iterator[Payload]:
    """Yield the node's state once a second, peers included. Raises: CliError: the daemon is gone."""
    with closing(daemon.stream("/api/v1/events", None, method="GET")) as events:  # type: ignore[type-var]
        try:
            for event in events:
                if isinstance(event, Data):
                    yield {**event.value, "peers": daemon.get("/api/v1/peers").get("peers", [])}
        except BrokenOffError as exc:  # the only end of this stream: it has no last event
            raise CliError("the daemon ended the stream: it is stopping, or was killed", Exit.UNREACHABLE) from exc


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


def _follow_lines(options: Globals, shots: Iterator[Payload]) -> None:
    with suppress(KeyboardInterrupt):
        for shot in shots:
            emit(options, shot, table=screen)
            sys.stdout.flush()


def _follow_screen(shots: Iterator[Payload]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with (
        suppress(KeyboardInterrupt),
        _quit_by_key(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        for shot in shots:
            # Cell texts were cleaned one by one; this keeps the rest, such as problems, harmless too.
            text = Text(harmless(screen(shot), keep="\n"), no_wrap=True, overflow="ellipsis")
            live.update(text, refresh=True)


@contextmanager
def _quit_by_key() -> Iterator[None]:
    """Make ``q`` do what Ctrl-C does, while standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    main = threading.main_thread().ident
    assert main is not None

    def read() -> None:
        while key := sys.stdin.read(1):
            if key in "qQ":
                signal.pthread_kill(main, signal.SIGINT)
                return

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    # A shell starts what runs in the background with Ctrl-C ignored, and Python leaves it so.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
