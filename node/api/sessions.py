"""Who may speak to the API: the home's token, and tokens of browser tabs that a one-time code was traded for.

``souk open`` asks for a code and opens the dashboard with it in the address; the page trades it at once. What a
browser's history keeps is a code that is spent, and the home's token never enters a browser. Tabs are forgotten
when the daemon stops.
"""

import hmac
import math
import secrets
from collections import deque
from typing import Final

import trio

CODE_S_MAX: Final = 60.0
CODES_MAX: Final = 16
TABS_MAX: Final = 64


class Sessions:
    """``token`` is the home's; all tokens may do everything."""

    def __init__(self, token: str) -> None:
        self._codes: dict[str, float] = {}
        """Each with its end in trio's time, the oldest first."""
        # The newest tabs: one that was opened before so many others has to sign in again.
        self._tokens: deque[str] = deque(maxlen=TABS_MAX)
        self._home_token = token
        self._replaced = trio.Event()

    @property
    def replaced(self) -> trio.Event:
        """Set once the tokens that open the API now open it no more: endless answers end with it."""
        return self._replaced

    def follow(self, token: str) -> None:
        """Take ``token`` for the home's; the one before, all codes and all tabs are forgotten."""
        self._home_token = token
        self._codes.clear()
        self._tokens.clear()
        self._replaced.set()
        self._replaced = trio.Event()

    def issue_code(self) -> str:
        """Return a new code, good for one trade within ``CODE_S_MAX``; the oldest of too many is forgotten."""
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(24)
        self._codes[code] = trio.current_time() + CODE_S_MAX
        return code

    def redeem(self, code: str) -> str | None:
        """Return a tab's token for a code, or None when it is unknown, spent or too old."""
        if trio.current_time() > self._codes.pop(code, -math.inf):
            return None
        token = secrets.token_urlsafe(24)
        self._tokens.append(token)
        return token

    def admits(self, token: str) -> bool:
        """Say whether a request with ``token`` may pass; how long this takes tells nothing about the tokens."""
        given = token.encode()
        matches = [hmac.compare_digest(given, known.encode()) for known in (self._home_token, *self._tokens)]
        return any(matches)
