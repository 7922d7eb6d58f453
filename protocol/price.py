"""What work costs: integers only, rounded up once, so that both sides reach the same number (spec 05)."""

from typing import Final

from protocol import limits
from protocol.fields import Money
from protocol.schema import Message
from protocol.units import MS_PER_S, TOKENS_PER_PRICE_UNIT, Microcredits

_PER_S_SCALE: Final = TOKENS_PER_PRICE_UNIT // MS_PER_S


class Prices(Message, frozen=True, kw_only=True):
    """A provider's tariff in microcredits: a fixed part, per million tokens in and out, and per second."""

    fixed: Money
    tokens_in: Money
    tokens_out: Money
    per_s: Money


def cost(prices: Prices, *, tokens_in: int, tokens_out: int, duration_ms: int, price_max: int) -> Microcredits:
    """Return ``fixed + ceil((in·price_in + out·price_out)/10⁶ + ms·per_s/10³)``, at most ``price_max``.

    A caller passes ``duration_ms`` 0 where ``per_s`` is 0 or time is unknown.
    """
    assert min(tokens_in, tokens_out, duration_ms, price_max) >= 0
    scaled = (
        tokens_in * prices.tokens_in + tokens_out * prices.tokens_out + duration_ms * prices.per_s * _PER_S_SCALE
    )
    # Negative floor division rounds up exactly; floats would differ between machines.
    return Microcredits(min(prices.fixed - (-scaled // TOKENS_PER_PRICE_UNIT), price_max))


def price_bound(prices: Prices, *, tokens_in_max: int, tokens_out_max: int, duration_ms_max: int) -> Microcredits:
    """Return the most that a job inside these bounds can cost."""
    return cost(
        prices,
        tokens_in=tokens_in_max,
        tokens_out=tokens_out_max,
        duration_ms=duration_ms_max,
        price_max=limits.MICROCREDITS_MAX,
    )


def not_dearer(prices: Prices, than: Prices) -> bool:
    """Return whether no part of ``prices`` exceeds the same part of ``than``."""
    return (
        prices.fixed <= than.fixed
        and prices.tokens_in <= than.tokens_in
        and prices.tokens_out <= than.tokens_out
        and prices.per_s <= than.per_s
    )
