"""The ``souk`` command. It speaks HTTP to the daemon and holds no state.

Importing this package or any command loads nothing heavy: what a verb needs is imported inside it, so that
``souk --help`` and every <TAB> stay quick.
"""


def main() -> None:
    """Run the command line of this process; ends it with one of the codes of ``exits.Exit``."""
    from node.cli.app import run

    run()
