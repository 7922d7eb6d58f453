"""Times of the week at which a machine is for others, written as ``mon-fri 18:00-08:00``. Pure.

Local wall time, as on the owner's clock: what a change to summer time does to it, it does to the hours as well.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EXAMPLE: Final = '"22:00-07:00" or "mon-fri 18:00-08:00"'
_MINUTES_A_DAY: Final = 24 * 60
_MINUTES_A_WEEK: Final = 7 * _MINUTES_A_DAY
_WINDOW: Final = re.compile(r"(?:([a-z,-]+) +)?(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """From one minute of the week on (monday 00:00 is 0), for so many minutes; it may run over sunday's end."""

    start: int
    length: int

    def holds(self, minute: int) -> bool:
        return (minute - self.start) % _MINUTES_A_WEEK < self.length


def parse_hours(text: str) -> tuple[Window, ...]:
    """Return the windows of one entry; one that ends before it begins runs over midnight.

    Raises:
        ValueError: with what was expected.
    """
    found = _WINDOW.fullmatch(text.strip().lower())
    if not found:
        raise ValueError(f"expected hours such as {EXAMPLE}, got {text!r}")
    begin, end = _minute(found[2], found[3], text), _minute(found[4], found[5], text)
    if begin in (_MINUTES_A_DAY, end):
        raise ValueError(f"expected a window that lasts, such as 00:00-24:00 for a whole day, got {text!r}")
    length = end - begin if end > begin else end + _MINUTES_A_DAY - begin
    return tuple(Window(day * _MINUTES_A_DAY + begin, length) for day in _days(found[1], text))


def is_within(windows: Sequence[Window], now: datetime) -> bool:
    """Return whether ``now``, of the owner's clock, lies in any window."""
    minute = _minute_of_week(now)
    return any(window.holds(minute) for window in windows)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """Return when the next window begins after ``now``; None without windows."""
    minute = _minute_of_week(now)
    # A window that has just begun is a week away from beginning again.
    waits = [(window.start - minute - 1) % _MINUTES_A_WEEK + 1 for window in windows]
    if not waits:
        return None
    return now.replace(second=0, microsecond=0) + timedelta(minutes=min(waits))


def _minute_of_week(moment: datetime) -> int:
    return moment.weekday() * _MINUTES_A_DAY + moment.hour * 60 + moment.minute


def _minute(hour: str, minute: str, text: str) -> int:
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > _MINUTES_A_DAY:
        raise ValueError(f"expected times from 00:00 to 24:00, got {hour}:{minute} in {text!r}")
    return total


def _days(names: str | None, text: str) -> tuple[int, ...]:
    if names is None:
        return tuple(range(len(DAYS)))
    days: list[int] = []
    for part in names.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"expected days of {', '.join(DAYS)}, or mon-fri, got {part!r} in {text!r}")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        days += [(begin + step) % len(DAYS) for step in range((end - begin) % len(DAYS) + 1)]
    return tuple(dict.fromkeys(days))
