"""Whether the ledger's disk takes what is written to it, and what to do about it when it does not. No SQL here.

A disk that is full, read-only or failing makes no contract: the daemon stays up, says so, and goes on when the
disk does (reliability.md, row 10).
"""

import logging
import sqlite3
from pathlib import Path
from typing import Final

import trio

from node.errors import LedgerDiskError

log = logging.getLogger(__name__)

# The low byte: the others only tell where SQLite stumbled.
_CODE_MASK: Final = 0xFF
_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "free space on the disk that holds it",
    sqlite3.SQLITE_READONLY: "make the disk that holds it writable again",
    sqlite3.SQLITE_CANTOPEN: "see to the disk that holds it",
    sqlite3.SQLITE_IOERR: "see to the disk that holds it: it reports errors (the kernel's log may say which)",
}


def is_of_disk(exc: sqlite3.Error) -> bool:
    """Return whether it is the disk that refuses, and not what was written that is wrong."""
    return _code(exc) in _REMEDIES


def is_damage(exc: sqlite3.Error) -> bool:
    """Return whether the file itself is at fault, and not the disk or another process."""
    return _code(exc) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def remedy_of(exc: sqlite3.Error) -> str:
    """Return what its owner can do about a disk that refuses."""
    return _REMEDIES[_code(exc)]


def _code(exc: sqlite3.Error) -> int:
    return int(getattr(exc, "sqlite_errorcode", 0)) & _CODE_MASK


class DiskHealth:
    """What the last writes said of the disk. ``fault`` is None while it takes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fault: str | None = None
        """What is wrong and what to do, for people."""
        self.failures = 0
        """Writes that the disk refused, since the start."""
        self._changed = trio.Event()
        self._failed = trio.Event()

    async def wait_change(self) -> None:
        """Return once writing has become impossible, or possible again."""
        await self._changed.wait()

    async def wait_fault(self) -> None:
        """Return once the disk refuses; at once while it does."""
        await self._failed.wait()

    def error(self) -> LedgerDiskError:
        """Return the error for whoever wants to write while there is a fault."""
        return LedgerDiskError(str(self.fault))

    def note(self, exc: sqlite3.Error) -> LedgerDiskError:
        """Take in that the disk refused, and return the error for whoever wanted to write."""
        self.failures += 1
        before, self.fault = self.fault, f"{self._path}: cannot be written: {exc}; {remedy_of(exc)}"
        if before is None:
            # Once, and not for every job that comes meanwhile.
            log.error("ledger cannot be written", extra={"path": str(self._path), "cause": str(exc)})
            self._failed.set()
            self._tell()
        return self.error()

    def healed(self) -> None:
        """Note that a write went through which was large enough to mean something."""
        if self.fault is None:
            return
        self.fault = None
        self._failed = trio.Event()
        log.warning("ledger can be written again", extra={"path": str(self._path), "failures": self.failures})
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
