from protocol import units
from protocol.price import Prices, cost


def test_token_prices_are_per_million() -> None:
    prices = Prices(fixed=0, tokens_in=0, tokens_out=units.MICROCREDITS_PER_CREDIT, per_s=0)
    bound = 10 * units.MICROCREDITS_PER_CREDIT
    owed = cost(prices, tokens_in=0, tokens_out=units.TOKENS_PER_PRICE_UNIT, duration_ms=0, price_max=bound)
    assert owed == units.MICROCREDITS_PER_CREDIT


def test_time_prices_are_per_second() -> None:
    prices = Prices(fixed=0, tokens_in=0, tokens_out=0, per_s=7)
    assert cost(prices, tokens_in=0, tokens_out=0, duration_ms=3 * units.MS_PER_S, price_max=100) == 21
