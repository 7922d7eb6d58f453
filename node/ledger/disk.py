"""What a ledger asks of the machine: a database that keeps what was committed, and a place for calls that block.

``FileDisk`` is the real one. The simulator brings another, in virtual time, that forgets what a crash would lose.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio
from outcome import Outcome

from node.durable import sync_folder

BUSY_WAIT_S: Final = 5.0

T = TypeVar("T")


class Disk(Protocol):
    """One database and the thread that may wait for it."""

    def connect(self) -> sqlite3.Connection:
        """Open or create the database; blocks. Raises: sqlite3.Error, OSError."""

    async def run(self, call: Callable[[], T]) -> T:
        """Make a blocking call, one at a time, and return what it returns."""


class FileDisk:
    """A database file, and a thread beside the event loop: a commit took up to 425 ms on a busy disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # One connection, so one call at a time for reads and writes alike.
        self._turn = trio.Lock()

    def connect(self) -> sqlite3.Connection:
        is_new = not self._path.exists()
        if is_new:
            # Who traded what with whom is its owner's business; SQLite gives its other files the same mode.
            self._path.touch(mode=0o600)
        db = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_WAIT_S, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if is_new:
                # The name itself has to survive a power cut, too.
                sync_folder(self._path.parent)
        except BaseException:
            db.close()
            raise
        return db

    async def run(self, call: Callable[[], T]) -> T:
        # ``to_thread.run_sync`` costs 172 us of processor time for a call that waits 0.2 ms, this 120: nobody in
        # here asks for context variables or ``trio.from_thread``. Once begun, a call is never abandoned.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

            def deliver(result: Outcome[T]) -> None:
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)

            # Without a name: to set and reset one takes two more calls into the kernel each time.
            trio.lowlevel.start_thread_soon(call, deliver)
            # Nothing checks what comes back over a reschedule: it is what ``call`` returned.
            done: T = await trio.lowlevel.wait_task_rescheduled(lambda _raise: trio.lowlevel.Abort.FAILED)
            return done
        finally:
            self._turn.release()
