from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.hours import DAYS, is_within, next_opening, parse_hours

MONDAY = datetime(2026, 11, 23)
moments = st.integers(0, 7 * 24 * 60 - 1).map(lambda minute: MONDAY + timedelta(minutes=minute))
times = st.tuples(st.integers(0, 23), st.integers(0, 59))
entries = st.builds(
    lambda days, begin, end: f"{','.join(days)} {begin[0]:02}:{begin[1]:02}-{end[0]:02}:{end[1]:02}",
    st.lists(st.sampled_from(DAYS), min_size=1, unique=True),
    times,
    times,
).filter(lambda text: text[-11:-6] != text[-5:])


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-07:00", ["mon 22:00", "tue 06:59", "mon 00:00"], ["mon 07:00", "mon 21:59"]),
        ("mon-fri 18:00-08:00", ["mon 18:00", "sat 07:59"], ["mon 07:00", "sat 18:00", "sun 23:00"]),
        ("sat,sun 00:00-24:00", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("fri-mon 12:00-13:00", ["fri 12:00", "sun 12:59", "mon 12:00"], ["thu 12:00", "tue 12:00"]),
        ("sun 23:00-01:00", ["sun 23:30", "mon 00:59"], ["mon 01:00", "sat 23:30"]),
    ],
)
def test_window_holds_what_its_words_say(text: str, inside: list[str], outside: list[str]) -> None:
    windows = parse_hours(text)
    for moments, expected in ((inside, True), (outside, False)):
        for moment in moments:
            day, _, clock = moment.partition(" ")
            hour, minute = map(int, clock.split(":"))
            at = MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)
            assert is_within(windows, at) is expected, moment


@given(entries, moments)
def test_window_agrees_with_days_counted_one_by_one(text: str, at: datetime) -> None:
    days, _, clock = text.partition(" ")
    begin, end = (int(it[:2]) * 60 + int(it[3:]) for it in clock.split("-"))
    minute = at.hour * 60 + at.minute
    today, yesterday = DAYS[at.weekday()] in days, DAYS[at.weekday() - 1] in days
    expected = (today and begin <= minute < end) if begin < end else (today and minute >= begin) or (
        yesterday and minute < end
    )  # fmt: skip
    assert is_within(parse_hours(text), at) is expected


@given(st.lists(entries, min_size=1, max_size=3), moments)
def test_next_opening_is_the_first_start_of_a_window(texts: list[str], at: datetime) -> None:
    windows = [window for text in texts for window in parse_hours(text)]
    opens_at = next_opening(windows, at)
    assert opens_at is not None and at < opens_at <= at + timedelta(days=7)
    assert is_within(windows, opens_at)
    if not is_within(windows, at):
        # Closed until then, minute by minute.
        waits = range(int((opens_at - at).total_seconds() // 60))
        assert not any(is_within(windows, at + timedelta(minutes=wait)) for wait in waits)


def test_nothing_opens_when_there_are_no_windows() -> None:
    assert next_opening((), MONDAY) is None and not is_within((), MONDAY)


@pytest.mark.parametrize(
    "text", ["", "always", "7-9", "09:00-09:00", "24:00-24:00", "12:60-13:00", "mon-fry 1:00-2:00"]
)
def test_reader_of_hours_says_what_it_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_hours(text)
