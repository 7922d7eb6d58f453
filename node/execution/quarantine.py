"""When a device may have its next worker: at once after a first death, after a pause and a probe when they repeat.

Pure: times come from the caller. Three deaths in ten minutes are no accident any more, whatever each was; a device
that goes on taking jobs then would fail them one by one. Design: reliability.md, 2.8 and figure 27.
"""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRules:
    """How many deaths in which time, and how long the pauses are."""

    deaths_max: int = 3
    window_s: float = 600.0
    restart_s: tuple[float, ...] = (0.0, 0.5)
    """Before the first, the second … new worker outside of quarantine."""
    pauses_s: tuple[float, ...] = (10.0, 30.0, 120.0, 600.0)
    """Before the first, the second … probe in a row."""


class Quarantine:
    """The deaths of one device's workers, and what follows from them."""

    def __init__(self, rules: QuarantineRules) -> None:
        self._rules = rules
        self._deaths: deque[float] = deque(maxlen=rules.deaths_max)
        self._probes = 0
        """Since the device was last healthy for a whole window: a probe that goes well proves little."""
        self.is_on = False
        self.next_start_at = 0.0

    def died(self, now: float) -> None:
        """Note a death, or a probe that failed."""
        rules = self._rules
        # A pause as long as the window is not health.
        if self.deaths(now) == 0 and not self.is_on:
            self._probes = 0
        self._deaths.append(now)
        self.is_on = self.is_on or self.deaths(now) >= rules.deaths_max
        if self.is_on:
            pause_s = rules.pauses_s[min(self._probes, len(rules.pauses_s) - 1)]
            self._probes += 1
        else:
            pause_s = rules.restart_s[min(self.deaths(now), len(rules.restart_s)) - 1]
        self.next_start_at = now + pause_s

    def passed(self) -> None:
        """Note that a fresh process went through the probe: the device serves again."""
        self.is_on = False

    def deaths(self, now: float) -> int:
        """Return how many deaths there were in the window that ends now, counted up to ``deaths_max``."""
        return sum(now - at < self._rules.window_s for at in self._deaths)
