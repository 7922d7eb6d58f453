"""``version``: which souk this is, in a form for programs as well."""

import sys

import click

from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import emit


@click.command(cls=SoukCommand)
@pass_globals
def version(options: Globals) -> int:
    """Print the version of this program; `souk status` has the daemon's."""
    # Both take longer to import than the verbs that need neither.
    from importlib.metadata import version as version_of

    from protocol.advert import PROTOCOL_VERSION

    payload = {
        "schema": 1,
        "version": version_of("souk"),
        "protocol": PROTOCOL_VERSION,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    emit(options, payload, table=lambda found: f"souk {found['version']}")
    return Exit.DONE
