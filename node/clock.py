"""Wall-clock time and entropy, as arguments: a simulation brings its own."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeAlias

from protocol.units import MS_PER_S, UnixMs

WallClock: TypeAlias = Callable[[], UnixMs]
"""The time that goes into signed messages. Durations come from trio's clock, never from this."""

Entropy: TypeAlias = Callable[[int], bytes]
"""Return that many random bytes."""

_NS_PER_MS: Final = 1_000_000


def system_time() -> UnixMs:
    return UnixMs(time.time_ns() // _NS_PER_MS)


def local_time() -> datetime:
    """Return the wall time of this machine's zone: what its owner's clock shows."""
    return datetime.now().astimezone()


def system_entropy(count: int) -> bytes:
    return os.urandom(count)


def to_ms(seconds: float) -> int:
    return int(seconds * MS_PER_S)
