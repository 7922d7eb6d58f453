"""The options of every verb that buys a job: where it may run, for how much, until when."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from node.cli.durations import duration_s

CANCELLED: Final = "cancelled: the connection is closed, and with it the job ends"


def buying_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add them to a command, which gets them as ``where``, ``max_price``, ``deadline`` and ``path``."""
    options = (
        click.option("--on", "where", metavar="any|local|remote|PEER", default="any", help="Where it may run."),
        click.option("--max-price", type=click.IntRange(min=0), metavar="µc", help="What the whole job may cost."),
        click.option(
            "--deadline", callback=duration_s, metavar="TIME", help="When to give up, such as 30s or 5m."
        ),
        click.option(
            "--path",
            type=click.Choice(("auto", "fast", "quote")),
            default="auto",
            help="How to agree on a price.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def souk_object(asked: Mapping[str, Any]) -> dict[str, Any]:  # click's values to a JSON body
    """Return the ``souk`` object of a request."""
    souk = {
        "on": asked["where"],
        "max_price": asked["max_price"],
        "deadline_s": asked["deadline"],
        "path": asked["path"],
    }
    return {name: value for name, value in souk.items() if value is not None}
