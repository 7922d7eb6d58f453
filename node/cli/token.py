"""``token``: the secret that opens this node's API, shown or replaced."""

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, emit, note


@click.group(cls=SoukGroup)
def token() -> None:
    """Show or replace the token of this node's API: whoever has it can spend, and stop the node."""


@token.command("show")
@pass_globals
def show(options: Globals) -> int:
    """Print the token of the home; 8 when it has none yet."""
    home = options.home
    try:
        found = home.read_token()
    except FileNotFoundError as exc:
        raise CliError(
            f"no token at {home.token_path}: souk serve makes one, or souk token rotate", Exit.TOKEN
        ) from exc
    payload = {"schema": 1, "token": found, "file": str(home.token_path)}
    emit(options, payload, table=lambda it: str(it["token"]))
    return Exit.DONE


@token.command("rotate")
@pass_globals
def rotate(options: Globals) -> int:
    """Make a new token; a running daemon takes it at once, and the old one opens nothing any more.

    Programs need the new one (souk env), Prometheus a new copy, the dashboard a new souk open. Answers that are
    on their way still come.
    """
    if runs := options.has_daemon:
        # The daemon writes the file itself: nobody sees a token that it does not follow. And it names the file:
        # one that --api leads to may have another home.
        file = find_daemon(options).request("POST", "/api/v1/token/rotate", {})["file"]
    else:
        home = options.home
        with home.locked():
            home.rotate_token()
        file = str(home.token_path)
    note(options, "the old token opens nothing any more; programs that have it need the new one: souk env")
    payload = {"schema": 1, "file": file, "daemon_follows": runs}
    emit(options, payload, table=_text)
    return Exit.DONE


def _text(payload: Payload) -> str:
    follows = "the daemon follows it" if payload["daemon_follows"] else "no daemon runs: the next one follows it"
    return f"a new token is in {payload['file']}; {follows}"
