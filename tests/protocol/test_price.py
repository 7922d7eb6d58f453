from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.price import Prices, cost, not_dearer, price_bound

money = st.integers(0, limits.MICROCREDITS_MAX)
tariffs = st.builds(Prices, fixed=money, tokens_in=money, tokens_out=money, per_s=money)
tokens = st.integers(0, limits.TOKENS_MAX)
durations = st.integers(0, 1 << 40)


@given(tariffs, tokens, tokens, durations, money)
def test_cost_equals_exact_fractions_rounded_up_once(
    prices: Prices, tokens_in: int, tokens_out: int, duration_ms: int, price_max: int
) -> None:
    exact = (
        prices.fixed
        + Fraction(tokens_in * prices.tokens_in + tokens_out * prices.tokens_out, 10**6)
        + Fraction(duration_ms * prices.per_s, 10**3)
    )
    owed = cost(prices, tokens_in=tokens_in, tokens_out=tokens_out, duration_ms=duration_ms, price_max=price_max)
    assert owed == min(ceil(exact), price_max)


@given(tariffs, tokens, tokens, durations, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_cost_never_falls_when_more_was_done(
    prices: Prices, tokens_in: int, tokens_out: int, duration_ms: int, more_in: int, more_out: int, more_ms: int
) -> None:
    bound = limits.MICROCREDITS_MAX
    less = cost(prices, tokens_in=tokens_in, tokens_out=tokens_out, duration_ms=duration_ms, price_max=bound)
    more = cost(
        prices,
        tokens_in=tokens_in + more_in,
        tokens_out=tokens_out + more_out,
        duration_ms=duration_ms + more_ms,
        price_max=bound,
    )
    assert less <= more


@given(tariffs, tariffs)
def test_dearer_tariff_never_bounds_lower(one: Prices, other: Prices) -> None:
    if not_dearer(one, other):
        bounds = [
            price_bound(prices, tokens_in_max=100, tokens_out_max=100, duration_ms_max=100)
            for prices in (one, other)
        ]
        assert bounds == sorted(bounds)


def test_cost_is_what_the_specification_says_in_its_example() -> None:
    prices = Prices(fixed=100, tokens_in=200_000, tokens_out=800_000, per_s=50)
    assert cost(prices, tokens_in=23, tokens_out=4, duration_ms=400, price_max=3_126) == 128
    assert cost(prices, tokens_in=1, tokens_out=0, duration_ms=0, price_max=3_126) == 101
    assert cost(prices, tokens_in=10**6, tokens_out=0, duration_ms=0, price_max=3_126) == 3_126
    assert price_bound(prices, tokens_in_max=64, tokens_out_max=16, duration_ms_max=60_000) == 3_126


def test_no_part_of_a_tariff_may_be_dearer() -> None:
    base = Prices(fixed=1, tokens_in=1, tokens_out=1, per_s=1)
    assert not_dearer(base, base)
    for field in ("fixed", "tokens_in", "tokens_out", "per_s"):
        dearer = Prices(
            **{name: 2 if name == field else 0 for name in ("fixed", "tokens_in", "tokens_out", "per_s")}
        )
        assert not not_dearer(dearer, base)
