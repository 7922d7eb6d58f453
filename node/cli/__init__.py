"""The ``souk`` command. It speaks HTTP to the daemon and holds no state.

Importing this package or any command loads nothing heavy: what a verb needs is imported inside it, so that
``souk --help`` and every <TAB> stay quick.
"""

import sys


def main() -> None:
    """Run the command line of this process; ends it with one of the codes of ``exits.Exit``."""
    # The imports take a tenth of a second: Ctrl-C in that time ends like Ctrl-C later.
    try:
        from node.cli.app import run
    except KeyboardInterrupt:
        print("souk: interrupted", file=sys.stderr)
        sys.exit(130)
    run()
