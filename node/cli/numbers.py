"""Numbers as people type them."""

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A range in which "nan", which compares with nothing, does not lie."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # click's own
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"expected a number, got {value!r}", param, ctx)
        return number
