"""``logs``: the lines of the daemon's log, the newest of this run and those to come."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlencode

import click

from node.cli.client import BrokenOffError, Daemon, Data, find_daemon
from node.cli.completion import complete_job
from node.cli.durations import duration_s
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, emit, harmless, note

LINES_MAX: Final = 1000
"""The daemon keeps no more."""
LEVELS: Final = ("debug", "info", "warning", "error")
_COLORS: Final = {"debug": "bright_black", "warning": "yellow", "error": "red", "critical": "red"}


@click.command(cls=SoukCommand)
@click.option("-f", "--follow", is_flag=True, help="Go on with the lines that come, until Ctrl-C.")
@click.option("--since", callback=duration_s, metavar="TIME", help="Only what is not older, such as 5m.")
@click.option(
    "--job", metavar="ID", shell_complete=complete_job, help="Only lines that name this job or its contracts."
)
@click.option("--level", type=click.Choice(LEVELS), help="Only this level and worse.")
@click.option("--grep", metavar="TEXT", help="Only lines with this text, in whatever case.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1, LINES_MAX),
    default=LINES_MAX,
    show_default=True,
    help="At most so many.",
)
@pass_globals
def logs(options: Globals, /, follow: bool, lines: int, **wanted: Any) -> int:  # click's values to a query
    """Print the newest lines of the daemon's log.

    The daemon keeps the newest 1,000 of its run; all of them go to its standard error (journalctl -u souk).
    Debug lines are there while log.level is debug. -o jsonl prints an object for each line.
    """
    given = {"since_s": wanted.pop("since"), "limit": lines, **wanted}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    daemon = find_daemon(options)
    if follow:
        _follow(options, daemon, query)
        return Exit.DONE
    payload = daemon.get(f"/api/v1/logs?{query}")
    if not payload["lines"]:
        note(options, "no such line among those that the daemon keeps")
    emit(options, payload, rows="lines", table=lambda found: _text(options, found))
    return Exit.DONE


def _follow(options: Globals, daemon: Daemon, query: str) -> None:
    stream = daemon.stream(f"/api/v1/logs/events?{query}", None, method="GET")
    try:
        with closing(stream) as events:
            for event in events:
                if isinstance(event, Data):
                    line = event.value
                    text = (
                        _line(options, line) if options.output == "table" else json.dumps(line, ensure_ascii=False)
                    )
                    print(text, flush=True)
    except KeyboardInterrupt:
        pass  # the way to end it
    except BrokenOffError as exc:  # the only other end of this stream
        raise CliError("the daemon ended the stream: it is stopping, or was killed", Exit.UNREACHABLE) from exc


def _text(options: Globals, payload: Payload) -> str:
    return "\n".join(_line(options, line) for line in payload["lines"])


def _line(options: Globals, line: Mapping[str, Any]) -> str:  # JSON of the daemon
    text = harmless(str(line["text"]), keep="\n\t")
    color = _COLORS.get(line["level"])
    return click.style(text, fg=color) if color and options.colors(sys.stdout) else text
