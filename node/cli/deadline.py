"""``--timeout``: until when a command talks to the daemon. Each wait gets what is left of it."""

import time
from dataclasses import dataclass

from node.cli.exits import CliError, Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment on the monotonic clock; without one, waits are bounded by what they wait for alone."""

    given_s: float | None = None
    """As the user gave it."""
    at_s: float | None = None

    def left_s(self, wait_s: float) -> float:
        """Return how long may be waited now, at most ``wait_s``. Raises: CliError (7, the deadline is over)."""
        if self.at_s is None:
            return wait_s
        left_s = self.at_s - time.monotonic()
        if left_s <= 0:
            raise self.over()
        return min(wait_s, left_s)

    @property
    def is_over(self) -> bool:
        return self.at_s is not None and time.monotonic() >= self.at_s

    def over(self) -> CliError:
        """Return what ends the command."""
        return CliError(
            f"not done within the {self.given_s:g} s of --timeout: give it more, or see what it waits for with "
            f"souk why",
            Exit.DEADLINE,
        )


NO_DEADLINE = Deadline()


def deadline_after(given_s: float | None, began_s: float) -> Deadline:
    """Return the end of ``given_s`` from a moment on the monotonic clock; of None, no end."""
    return NO_DEADLINE if given_s is None else Deadline(given_s=given_s, at_s=began_s + given_s)
