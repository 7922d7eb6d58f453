"""Disks for the real ledger that lose power, fill up or fail: SQLite over a virtual file system that we watch.

Python's ``sqlite3`` takes no file system of ours, so these connect through apsw, a second SQLite.
"""

import itertools
import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import apsw
import trio

T = TypeVar("T")

SECTOR = 512
_names = itertools.count()
_CODES = {apsw.FullError: sqlite3.SQLITE_FULL, apsw.IOError: sqlite3.SQLITE_IOERR}


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that SQLite asked of a file."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""


class _File(apsw.VFSFile):
    def __init__(self, disk: "WatchedDisk", name: Any, flags: list[int]) -> None:  # apsw's own types
        path = name.filename() if isinstance(name, apsw.URIFilename) else (name or "temporary")
        self._name, self._disk = os.path.basename(path), disk
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.saw(Op("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._disk.saw(Op("truncate", self._name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        self._disk.saw(Op("sync", self._name))
        super().xSync(flags)


class _FileSystem(apsw.VFS):
    def __init__(self, disk: "WatchedDisk", name: str) -> None:
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # apsw's own types
        return _File(self._disk, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:
        self._disk.saw(Op("delete", os.path.basename(name)))
        super().xDelete(name, sync)


@dataclass
class WatchedDisk:
    """Implements ``node.ledger.disk.Disk``; ``before`` sees each operation and may raise in its place."""

    path: Path
    synchronous: str = "FULL"
    before: Callable[[Op], None] = lambda _op: None
    checkpoint_pages: int = 50

    def __post_init__(self) -> None:
        self._name = f"watched-{next(_names)}"
        self._vfs = _FileSystem(self, self._name)

    def saw(self, op: Op) -> None:
        self.before(op)

    def connect(self) -> sqlite3.Connection:
        db = _Database(apsw.Connection(str(self.path), vfs=self._name))
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={self.synchronous}")
        # So often that a short run has checkpoints, too.
        db.execute(f"PRAGMA wal_autocheckpoint={self.checkpoint_pages}")
        return db  # type: ignore[return-value]  # it does what the ledger asks of one

    async def run(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call)


class _Cursor:
    def __init__(self, cursor: apsw.Cursor, changed: int) -> None:
        self._cursor = cursor
        self.rowcount = changed

    def fetchone(self) -> Any:  # a row
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:  # rows
        return self._cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


class _Database:
    """As much of ``sqlite3.Connection`` as the ledger uses, its errors included."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, values: Iterable[object] = ()) -> _Cursor:
        before = self._db.total_changes()
        try:
            cursor = self._db.execute(sql, tuple(values))
        except apsw.Error as exc:
            error = sqlite3.OperationalError(str(exc))
            # The standard library's own sets it, too.
            error.sqlite_errorcode = _CODES.get(type(exc), sqlite3.SQLITE_ERROR)
            raise error from exc
        return _Cursor(cursor, self._db.total_changes() - before)

    def executescript(self, script: str) -> _Cursor:
        return self.execute(script)

    def executemany(self, sql: str, rows: Iterable[Iterable[object]]) -> None:
        for row in rows:
            self.execute(sql, row)

    def close(self) -> None:
        self._db.close()


@dataclass
class PowerCuts:
    """Records a run, and makes the disk anew as it may look after a cut at any moment of it."""

    ops: list[Op | int] = field(default_factory=list)
    """Operations; an int is a posting that was acknowledged then."""

    def acknowledge(self, number: int) -> None:
        self.ops.append(number)

    def image(self, at: int, how: str, rng: random.Random) -> tuple[dict[str, bytes], set[int]]:
        """Return the files after a cut before operation ``at``, and what had been acknowledged.

        What was synced is there. Of the rest there is nothing (``none``), some first part (``prefix``) or any
        part (``subset``), and the last write may be torn at a sector.
        """
        disk: dict[str, bytearray] = {}
        waiting: dict[str, list[Op]] = {}
        acknowledged: set[int] = set()
        for op in self.ops[:at]:
            match op:
                case int():
                    acknowledged.add(op)
                case Op(kind="sync"):
                    for earlier in waiting.pop(op.file, ()):
                        _apply(disk.setdefault(op.file, bytearray()), earlier, None)
                case Op(kind="delete"):
                    disk.pop(op.file, None)
                    waiting.pop(op.file, None)
                case _:
                    waiting.setdefault(op.file, []).append(op)
                    disk.setdefault(op.file, bytearray())
        for name, ops in waiting.items() if how != "none" else ():
            kept = (
                ops[: rng.randrange(len(ops) + 1)] if how == "prefix" else [it for it in ops if rng.random() < 0.5]
            )
            for place, op in enumerate(kept):
                is_torn = op.kind == "write" and place == len(kept) - 1 and rng.random() < 0.5
                _apply(disk[name], op, SECTOR * rng.randrange(len(op.data) // SECTOR + 1) if is_torn else None)
        return {name: bytes(data) for name, data in disk.items()}, acknowledged


def _apply(data: bytearray, op: Op, torn_at: int | None) -> None:
    if op.kind == "truncate":
        del data[op.offset :]
        return
    written = op.data if torn_at is None else op.data[:torn_at]
    end = op.offset + len(written)
    data.extend(bytes(max(end - len(data), 0)))
    data[op.offset : end] = written
