"""What was acknowledged is on disk, and nothing that happens around a posting harms another one."""

import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from node.errors import KnownContractError, LedgerError
from node.ledger import ledger as ledger_module
from node.ledger.disk import FileDisk
from node.ledger.ledger import Ledger
from protocol.states import ProviderState, RequesterState
from tests.ledger.fakes import PEER, contract_id, entry, row, unpaid

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
async def ledger(path: Path, nursery: trio.Nursery) -> Ledger:
    made = Ledger(path)
    await nursery.start(made.run)
    return made


def stored(path: Path) -> int:
    """Return how many entries another process would find now."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        (count,) = db.execute("SELECT count(*) FROM entry").fetchone()
    db.close()
    return int(count)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond the ledger as it is."""
    size = max(it.stat().st_size for it in path.parent.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_posting_is_on_disk_when_post_returns(ledger: Ledger, path: Path) -> None:
    await ledger.post(entry(1, contract=1), entry(2, contract=1), row=row(1))
    assert stored(path) == 2
    (found,) = await ledger.contracts(10)
    assert found == row(1)


async def test_ledger_syncs_every_commit(ledger: Ledger) -> None:
    # With NORMAL, a power cut takes acknowledged commits: no test that kills processes sees it.
    (level,) = ledger._store.db.execute("PRAGMA synchronous").fetchone()
    assert level == 2


class DyingDisk(FileDisk):
    """The machine's own until it is told to die: then every call fails, the one under way too."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_dead = False

    async def run(self, call: Callable[[], T]) -> T:
        if self.is_dead:
            await trio.testing.wait_all_tasks_blocked()
            raise LedgerError("the machine of this ledger is gone")
        return await super().run(call)


async def test_everybody_who_waits_is_answered_when_the_ledger_ends_by_a_fault(path: Path) -> None:
    disk, answered = DyingDisk(path), 0
    ledger = Ledger(path, disk)

    async def post(number: int) -> None:
        nonlocal answered
        # As a farewell does: nothing but an answer ends this wait.
        with trio.CancelScope(shield=True), trio.fail_after(10), pytest.raises(LedgerError):
            await ledger.post(entry(number, contract=number), row=row(number))
        answered += 1

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            disk.is_dead = True
            for number in range(5):
                nursery.start_soon(post, number)

    with pytest.raises(ExceptionGroup):
        await live()
    assert answered == 5


async def test_message_is_one_entry_when_it_is_posted_twice(ledger: Ledger, path: Path) -> None:
    for _ in range(2):
        await ledger.post(entry(1, contract=1), entry(2, contract=1), row=row(1, vouchered=5))
    assert stored(path) == 2 and await ledger.verify() == 2
    assert (await ledger.totals()).earned == 5


async def test_contract_has_one_row_when_its_state_moves_on(ledger: Ledger) -> None:
    await ledger.post(row=row(1, ProviderState.RUNNING, metered=5))
    await ledger.post(row=row(1, ProviderState.CLOSED, metered=9, vouchered=9))
    assert await ledger.contracts(10) == [row(1, ProviderState.CLOSED, metered=9, vouchered=9)]


async def test_neighbours_are_written_when_one_posting_of_a_batch_is_bad(ledger: Ledger, path: Path) -> None:
    failed: list[int] = []

    async def post(number: int) -> None:
        try:
            await ledger.post(entry(number, contract=number), row=row(number, metered=-1 if number == 3 else 0))
        except LedgerError:
            failed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(post, number)
    # All or nothing: the bad one's message is not there either.
    assert failed == [3] and stored(path) == 7 and await ledger.verify() == 7


async def test_ledger_fails_cleanly_and_recovers_when_the_disk_is_full(ledger: Ledger, path: Path) -> None:
    await ledger.post(entry(0, contract=0), row=row(0))
    acknowledged = 1
    with full_disk(path), pytest.raises(LedgerError, match="cannot be written"):  # noqa: PT012 - some still fit
        for number in range(1, 500):
            await ledger.post(entry(number, contract=number), row=row(number))
            acknowledged += 1
    with full_disk(path):
        assert len(await ledger.contracts(1000)) == acknowledged
    await ledger.post(entry(1000, contract=1000), row=row(1000))
    assert stored(path) == acknowledged + 1 == await ledger.verify()


def test_ledger_refuses_to_open_when_its_file_is_no_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerError, match="cannot be used"):
        trio.run(Ledger(path).run)


async def test_ledger_refuses_to_open_when_its_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be used"):
        await Ledger(tmp_path / "nowhere" / "ledger.db").run()


async def test_ledger_refuses_to_open_when_a_newer_program_wrote_it(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="newer souk"):
        await Ledger(path).run()


async def test_writer_goes_on_when_a_poster_is_cancelled(ledger: Ledger, path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(post_and_leave, ledger, number)
    await ledger.post(entry(100, contract=100), row=row(100))
    # Nobody knows the outcome of the cancelled ones: posting again settles it.
    for number in range(20):
        await ledger.post(entry(number, contract=number), row=row(number))
    assert stored(path) == 21 == await ledger.verify()


async def post_and_leave(ledger: Ledger, number: int) -> None:
    with trio.CancelScope() as scope:
        if number % 2:
            scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ledger.post, entry(number, contract=number))
            await trio.lowlevel.checkpoint()
            scope.cancel()


async def test_waiting_postings_are_written_when_the_ledger_closes(path: Path) -> None:
    ledger = Ledger(path)
    acknowledged: list[int] = []

    async def post(number: int) -> None:
        await ledger.post(entry(number, contract=number))
        acknowledged.append(number)

    async with trio.open_nursery() as posters, trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        for number in range(ledger_module.BATCH_MAX * 3):
            posters.start_soon(post, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(acknowledged) == ledger_module.BATCH_MAX * 3 == stored(path)


async def test_post_fails_when_the_ledger_has_closed(path: Path) -> None:
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(LedgerError, match="closed"):
        await ledger.post(entry(1))
    with pytest.raises(LedgerError, match="closed"):
        await ledger.contracts(1)


async def test_open_contracts_end_without_a_debt_for_unfinished_work_when_a_crash_left_them(path: Path) -> None:
    left = [
        (1, ProviderState.FORMED, ProviderState.FAILED),
        (2, ProviderState.RUNNING, ProviderState.FAILED),
        (3, ProviderState.PAUSED_UNPAID, ProviderState.FAILED),
        (4, ProviderState.FINISHED, ProviderState.UNPAID),
        (5, ProviderState.CLOSED, ProviderState.CLOSED),
        (6, RequesterState.OFFERED, RequesterState.LAPSED),
        (7, RequesterState.FORMED, RequesterState.LOST),
        (8, RequesterState.STREAMING, RequesterState.LOST),
        (9, RequesterState.CLOSED, RequesterState.CLOSED),
    ]
    await one_run(path, *(row(number, before) for number, before, _after in left))
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        found = {it.contract_id: it.state for it in await ledger.contracts(100)}
        nursery.cancel_scope.cancel()
    assert found == {contract_id(number): after for number, _before, after in left}


async def one_run(path: Path, *rows: object) -> None:
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        for it in rows:
            await ledger.post(row=it)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entry SET envelope = x'00' WHERE seq = 2",
        "UPDATE entry SET message_id = x'00' WHERE seq = 2",
        "UPDATE entry SET hash = zeroblob(32) WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 2",
    ],
)
async def test_verify_finds_it_when_a_row_was_altered(ledger: Ledger, path: Path, change: str) -> None:
    for number in range(3):
        await ledger.post(entry(number))
    assert await ledger.verify() == 3
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    with pytest.raises(LedgerError, match="does not continue"):
        await ledger.verify()


async def test_debts_are_what_requesters_left_unpaid(ledger: Ledger) -> None:
    await ledger.post(row=row(1, ProviderState.UNPAID, metered=9, vouchered=4))
    await ledger.post(row=row(2, ProviderState.CLOSED, metered=7, vouchered=7))
    # Our own failure leaves no debt.
    await ledger.post(row=row(3, ProviderState.FAILED, metered=9, vouchered=0))
    assert await unpaid(ledger) == {PEER: 5}


async def test_messages_are_found_by_a_prefix_of_the_contract(ledger: Ledger) -> None:
    ask = entry(1, by="peer")
    await ledger.post(ask, entry(2, contract=1), row=row(1))
    await ledger.post(entry(3, contract=2, job=b"k" * 16), row=row(2))
    found = await ledger.messages(contract_id(1).hex())
    assert found is not None and [it.sender for it in found[1]] == ["requester", "provider"]
    assert await ledger.messages("00") is None, "two contracts begin so"
    assert await ledger.messages("ff") is None


@pytest.mark.parametrize("prefix", ["%", "_" * 64, ""])
async def test_no_contract_is_found_by_a_wildcard(ledger: Ledger, prefix: str) -> None:
    await ledger.post(entry(2, contract=1), row=row(1))
    assert await ledger.messages(prefix) is None


async def test_contract_is_entered_as_new_only_once_and_its_neighbours_are_not_harmed(ledger: Ledger) -> None:
    refused: list[int] = []

    async def enter(number: int) -> None:
        try:
            await ledger.post(entry(number, contract=number), row=row(number), is_new=True)
        except KnownContractError:
            refused.append(number)

    await enter(1)
    async with trio.open_nursery() as nursery:
        for number in (2, 1, 3, 2, 4):
            nursery.start_soon(enter, number)
    assert sorted(refused) == [1, 2] and ledger.health.fault is None
    assert {it.contract_id for it in await ledger.contracts(10)} == {contract_id(it) for it in range(1, 5)}
    assert await ledger.verify() == 4


@pytest.mark.slow
def test_no_acknowledged_posting_is_lost_when_the_writer_is_killed_twenty_times(path: Path) -> None:
    acknowledged: set[int] = set()
    for run in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger.writer", str(path), str(run * 100_000)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        # A different moment each time, and always in mid-work.
        for _ in range(1 + run * 7):
            acknowledged.add(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        acknowledged.update(int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n"))
        with sqlite3.connect(path) as db:
            found = {int.from_bytes(it[0], "big") for it in db.execute("SELECT contract_id FROM entry")}
        db.close()
        assert acknowledged <= found
    assert trio.run(count_verified, path) >= len(acknowledged) >= 1_000


async def count_verified(path: Path) -> int:
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        count = await ledger.verify()
        nursery.cancel_scope.cancel()
    return count
