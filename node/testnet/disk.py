"""A disk in virtual time, for the real ledger: commits take time, and a crash loses what was not committed.

Each commit is one real SQLite transaction on a database in memory, so that the SQL is the one of production. The
wait before it stands for the write, the wait after it for the answer: a crash in the first loses the posting, one
in the second leaves it durable and unacknowledged.
"""

import itertools
import random
import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from node.errors import LedgerError

# As measured on a small disk: most commits are quick, a few wait for others.
COMMIT_S: Final = (0.0002, 0.004)
SLOW_COMMIT_S: Final = (0.1, 2.0)

T = TypeVar("T")

_NAMES = itertools.count()


class SimulatedDisk:
    """One node's disk: it outlives the node's incarnations. Each of them uses its own ``DiskHandle``."""

    def __init__(self, on_durable: Callable[[bytes], None]) -> None:
        """``on_durable`` hears every message that is durable from now on, and may be lost from no crash."""
        self._uri = f"file:souk-simulation-{next(_NAMES)}?mode=memory&cache=shared"
        self._on_durable = on_durable
        self._last = 0
        self._anchor: sqlite3.Connection | None = None
        self.slow = False

    @property
    def db(self) -> sqlite3.Connection:
        """A connection of the simulation's own: what another program would find on this disk now."""
        if self._anchor is None:
            # It keeps the database alive between two incarnations.
            self._anchor = self.connect()
        return self._anchor

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._uri, uri=True, isolation_level=None)

    def close(self) -> None:
        if self._anchor is not None:
            self._anchor.close()

    def note_durable(self) -> None:
        """Tell of the messages that came since the last time."""
        if self.db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'entry'").fetchone() is None:
            return
        for seq, envelope in self.db.execute(
            "SELECT seq, envelope FROM entry WHERE seq > ? ORDER BY seq", (self._last,)
        ).fetchall():
            self._last = seq
            self._on_durable(envelope)


class DiskHandle:
    """Implements ``node.ledger.disk.Disk`` for one incarnation; after ``detach`` nothing reaches the disk."""

    def __init__(self, disk: SimulatedDisk, rng: random.Random) -> None:
        self._disk = disk
        self._rng = rng
        self._connections: list[sqlite3.Connection] = []
        self._turn = trio.Lock()
        self._is_attached = True

    def connect(self) -> sqlite3.Connection:
        connection = self._disk.connect()
        self._connections.append(connection)
        return connection

    async def run(self, call: Callable[[], T]) -> T:
        """Raises: LedgerError: the machine is gone (nobody is left to hear it)."""
        async with self._turn:
            await self._wait()
            result = call()
            self._disk.note_durable()
            await self._wait()
            return result

    def detach(self) -> None:
        """Crash: whatever still runs cannot write any more."""
        self._is_attached = False
        for connection in self._connections:
            connection.close()

    async def _wait(self) -> None:
        if self._is_attached:
            await trio.sleep(self._rng.uniform(*(SLOW_COMMIT_S if self._disk.slow else COMMIT_S)))
        if not self._is_attached:
            raise LedgerError("the machine of this ledger is gone")
