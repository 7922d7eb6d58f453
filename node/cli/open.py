"""``open``: the dashboard, signed in by a one-time code in the address."""

import sys

import click

from node.cli.client import find_daemon
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import emit, note


@click.command(cls=SoukCommand, name="open")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@pass_globals
def open_dashboard(options: Globals, no_browser: bool) -> int:
    """Open the dashboard in a browser and print its address, which works once and for a minute."""
    import webbrowser

    daemon = find_daemon(options)
    code = daemon.request("POST", "/api/v1/dashboard", {})["code"]
    url = f"{daemon.url}/#code={code}"
    emit(options, {"schema": 1, "url": url}, table=lambda payload: str(payload["url"]))
    # Where nobody sits at the machine there is no browser to open: the address has to do.
    if sys.stdout.isatty() and not no_browser and not webbrowser.open(url):
        note(options, "no browser was found here: open the address by hand, within a minute")
    return 0
