"""Signals that end a command which has started processes: never between a process and the note that it exists."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the signals that end a command into ``KeyboardInterrupt``, at moments where that loses nothing.

    Masking them instead would be inherited by the processes that are started meanwhile.
    """

    def __init__(self) -> None:
        self._held = 0
        self._pending = False
        self._ignored = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals while the block runs; only the main thread can."""
        before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put a signal off until the block has ended."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._pending and not self._held and not self._ignored:
            self._pending = False
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on nothing interrupts: what was started is being stopped."""
        self._ignored = True

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt
