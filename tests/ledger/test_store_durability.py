"""What was acknowledged survives kills, power cuts and disks that fail; each test also shows that it bites."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest
import trio

from node.errors import LedgerError
from node.ledger.audit import audit_file
from node.ledger.ledger import Ledger
from node.ledger.store import LedgerStore
from tests.ledger.disks import Op, PowerCuts, WatchedDisk
from tests.ledger.fakes import contract_id, entry, row
from tests.ledger.jobs import contract_of, signed_job

ROOT = Path(__file__).parents[2]
TRANSACTIONS = 400

Figure = Callable[[str, str], None]


# Kills.


@contextmanager
def writers(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.ledger.job_writer", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()


def one_life(process: subprocess.Popen[bytes], first: int, postings: int) -> set[int]:
    """Let a writer post, kill it in mid-work, and return what it had acknowledged."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{first}\n".encode())
    lines = iter(process.stdout.readline, b"")
    acknowledged: set[int] = set()
    pid = 0
    for line in lines:
        if line == b"ended\n":
            break
        if line.startswith(b"pid "):
            pid = int(line.split()[1])
        else:
            acknowledged.add(int(line))
        if pid and len(acknowledged) >= postings:
            os.kill(pid, signal.SIGKILL)
            pid = 0
    return acknowledged


def contracts_in(path: Path) -> set[bytes]:
    with sqlite3.connect(path) as db:
        found = {it for (it,) in db.execute("SELECT contract_id FROM contract")}
    db.close()
    return found


def check_kills(path: Path, kills: int, figure: Figure) -> None:
    rng = random.Random(kills)
    acknowledged: set[bytes] = set()
    with writers(path) as process:
        for life in range(kills):
            numbers = one_life(process, life * 1_000, 1 + rng.randrange(12))
            acknowledged |= {contract_of(signed_job(number)) for number in numbers}
            assert acknowledged <= contracts_in(path), f"after kill {life}"
    found = audit_file(path, lambda: None)
    # A job whose row was never posted has its first messages alone; nothing else may differ.
    assert {(it.field, it.stored) for it in found.differences} <= {("row", "missing")}
    assert found.differences_total <= 2 * kills
    said = f"0 of {len(acknowledged)} in {kills} kills; {found.entries} entries verify"
    figure("ledger: acknowledged jobs lost, SIGKILL", said)


@pytest.mark.slow
def test_no_acknowledged_job_is_lost_when_its_writer_is_killed(tmp_path: Path, figure: Figure) -> None:
    check_kills(tmp_path / "ledger.db", 20, figure)


@pytest.mark.slow
@pytest.mark.deep
def test_no_acknowledged_job_is_lost_in_two_hundred_kills(tmp_path: Path, figure: Figure) -> None:
    check_kills(tmp_path / "ledger.db", 200, figure)


# Power cuts.


def recorded(path: Path, synchronous: str) -> PowerCuts:
    """Write a ledger of so many postings and return all that the disk saw."""
    cuts = PowerCuts()
    store = LedgerStore(path, WatchedDisk(path, synchronous, before=cuts.ops.append))
    store.open()
    for number in range(TRANSACTIONS):
        store.write([entry(number, contract=number)], [row(number, vouchered=number)])
        cuts.acknowledge(number)
    store.close()
    return cuts


def surviving(folder: Path, files: dict[str, bytes]) -> set[int]:
    """Start a ledger on what a cut left, check that it is whole, and return its postings."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    store = LedgerStore(folder / "ledger.db")
    # Pages, schema and hash chain are checked on the way.
    store.open()
    entries = {int.from_bytes(it, "big") for (it,) in store.db.execute("SELECT contract_id FROM entry")}
    rows = {int.from_bytes(it.contract_id, "big"): it.vouchered for it in store.contracts(limit=-1)}
    store.close()
    assert rows == {number: number for number in entries}, "a posting was cut in half"
    return entries


def cut_and_count(tmp_path: Path, synchronous: str, count: int, figure: Figure) -> int:
    """Return how many of ``count`` cuts lost something that had been acknowledged."""
    (tmp_path / "run").mkdir()
    cuts = recorded(tmp_path / "run" / "ledger.db", synchronous)
    rng = random.Random(3)
    first = cuts.ops.index(0)
    losses = 0
    for number in range(count):
        how = ("none", "prefix", "subset")[number % 3]
        files, acknowledged = cuts.image(rng.randrange(first, len(cuts.ops) + 1), how, rng)
        losses += not acknowledged <= surviving(tmp_path / str(number), files)
    figure(
        f"ledger: power cuts that lost something acknowledged, synchronous={synchronous}", f"{losses} of {count}"
    )
    return losses


@pytest.mark.slow
def test_no_acknowledged_posting_is_lost_in_a_power_cut(tmp_path: Path, figure: Figure) -> None:
    assert cut_and_count(tmp_path, "FULL", 120, figure) == 0


@pytest.mark.slow
def test_power_cuts_lose_postings_when_commits_are_not_synced(tmp_path: Path, figure: Figure) -> None:
    # The negative control: were this to pass with none lost, the test above would prove nothing.
    assert cut_and_count(tmp_path, "NORMAL", 30, figure) > 15


@pytest.mark.slow
@pytest.mark.deep
def test_no_acknowledged_posting_is_lost_in_nine_hundred_power_cuts(tmp_path: Path, figure: Figure) -> None:
    assert cut_and_count(tmp_path, "FULL", 900, figure) == 0


@pytest.mark.slow
@pytest.mark.deep
def test_nine_hundred_power_cuts_lose_postings_when_commits_are_not_synced(tmp_path: Path, figure: Figure) -> None:
    assert cut_and_count(tmp_path, "NORMAL", 900, figure) > 450


# Disks that are full, or fail.


class Faults:
    """Raises in place of one operation, or of every write while the disk is full."""

    def __init__(self) -> None:
        self.is_full = False
        self.fails_at = -1
        self.seen = 0

    def __call__(self, op: Op) -> None:
        self.seen += 1
        if self.is_full and op.kind == "write":
            raise apsw.FullError("no space left")
        if self.seen == self.fails_at:
            raise apsw.IOError(f"{op.kind} failed")


async def test_ledger_can_be_read_when_the_disk_is_full_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    faults, path = Faults(), tmp_path / "ledger.db"
    ledger = Ledger(path, WatchedDisk(path, before=faults))
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        await ledger.post(entry(1, contract=1), row=row(1, vouchered=1))
        faults.is_full = True
        for _ in range(3):
            with pytest.raises(LedgerError, match="cannot be written"):
                await ledger.post(entry(2, contract=2), row=row(2))
            assert [it.contract_id for it in await ledger.contracts(10)] == [contract_id(1)]
            assert await ledger.verify() == 1
        faults.is_full = False
        await ledger.post(entry(2, contract=2), row=row(2))
        assert await ledger.verify() == 2
        nursery.cancel_scope.cancel()


@pytest.mark.slow
def test_ledger_goes_on_when_any_one_operation_of_the_disk_fails(tmp_path: Path) -> None:
    failures, number = 0, 0
    while True:
        number += 1
        faults, path = Faults(), tmp_path / f"{number}.db"
        store = LedgerStore(path, WatchedDisk(path, before=faults, checkpoint_pages=4))
        store.open()
        faults.fails_at = faults.seen + number
        acknowledged, failed = set(), set()
        for posting in range(6):
            try:
                store.write([entry(posting, contract=posting)], [row(posting)])
                acknowledged.add(posting)
            except sqlite3.Error:
                failed.add(posting)
        is_over = faults.seen < faults.fails_at
        faults.fails_at = -1
        failures += len(failed)
        # What failed may be there: a checkpoint runs after its commit. Posting it again settles that.
        assert acknowledged <= postings_of(store) <= acknowledged | failed
        for posting in failed:
            store.write([entry(posting, contract=posting)], [row(posting)])
        store.close()
        after = LedgerStore(path)
        after.open()
        assert postings_of(after) == set(range(6)) and after.verify() == 6
        after.close()
        if is_over:
            break
    assert number > 30 and failures > 10


def postings_of(store: LedgerStore) -> set[int]:
    return {int.from_bytes(it.contract_id, "big") for it in store.contracts(limit=-1)}
