"""Durations as people type them: 90, 90s, 1.5m, 2h or 30d."""

import re
from typing import Final

import click

_UNIT_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of 90, 90s, 1.5m, 2h or 30d, for an option's ``callback``."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", value)
    if not found or not float(found[1]):
        raise click.BadParameter(f"expected a duration such as 90s or 5m, got {value!r}", ctx=ctx, param=param)
    return float(found[1]) * _UNIT_S[found[2] or ""]
