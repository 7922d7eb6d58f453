"""One ledger over two disks: the real one and the simulator's keep the same promises."""

import random
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.errors import LedgerError
from node.ledger.disk import Disk, FileDisk
from node.ledger.ledger import Ledger
from node.testnet.disk import DiskHandle, SimulatedDisk
from protocol.states import ProviderState
from tests.ledger.fakes import PEER, entry, row, unpaid

MakeDisk = Callable[[], Disk]


@pytest.fixture(params=["file", "simulated"])
def make_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeDisk]:
    """Return what makes the disk of one incarnation after another, on one machine."""
    machine = SimulatedDisk(lambda _raw: None)
    assert machine.db
    if request.param == "file":
        yield lambda: FileDisk(tmp_path / "ledger.db")
    else:
        yield lambda: DiskHandle(machine, random.Random(1))
    machine.close()


async def use(disk: Disk, work: Callable[[Ledger], Awaitable[None]]) -> None:
    ledger = Ledger(Path("ledger.db"), disk)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        await work(ledger)
        nursery.cancel_scope.cancel()


async def test_posting_is_there_after_a_restart(make_disk: MakeDisk) -> None:
    async def write(ledger: Ledger) -> None:
        await ledger.post(entry(1, contract=1), row=row(1, ProviderState.CLOSED, metered=9, vouchered=9))

    async def read(ledger: Ledger) -> None:
        assert await ledger.contracts(10) == [row(1, ProviderState.CLOSED, metered=9, vouchered=9)]
        assert await ledger.verify() == 1

    await use(make_disk(), write)
    await use(make_disk(), read)


async def test_message_is_one_entry_when_it_is_posted_twice(make_disk: MakeDisk) -> None:
    async def work(ledger: Ledger) -> None:
        for _ in range(2):
            await ledger.post(entry(1, contract=1), entry(2, contract=1), row=row(1))
        assert await ledger.verify() == 2

    await use(make_disk(), work)


async def test_open_contract_is_ended_and_its_debt_kept_at_the_next_start(make_disk: MakeDisk) -> None:
    async def write(ledger: Ledger) -> None:
        await ledger.post(entry(1, contract=1), row=row(1, ProviderState.FINISHED, metered=7, vouchered=3))

    async def read(ledger: Ledger) -> None:
        (found,) = await ledger.contracts(10)
        assert found.state is ProviderState.UNPAID
        assert await unpaid(ledger) == {PEER: 4}

    await use(make_disk(), write)
    await use(make_disk(), read)


async def test_bad_posting_fails_alone(make_disk: MakeDisk) -> None:
    async def work(ledger: Ledger) -> None:
        with pytest.raises(LedgerError):
            await ledger.post(row=row(1, vouchered=-1))
        await ledger.post(entry(2, contract=2), row=row(2))
        assert await ledger.verify() == 1

    await use(make_disk(), work)


async def test_crash_loses_what_no_answer_came_for(autojump_clock: MockClock) -> None:
    durable: list[bytes] = []
    machine = SimulatedDisk(durable.append)
    handle = DiskHandle(machine, random.Random(1))
    ledger = Ledger(Path("ledger.db"), handle)

    async def live() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            await ledger.post(entry(1, contract=1), row=row(1))
            machine.slow = True
            nursery.start_soon(partial(ledger.post, entry(2, contract=2), row=row(2)))
            await trio.sleep(0.05)
            handle.detach()
            nursery.cancel_scope.cancel()

    with pytest.raises(ExceptionGroup) as caught:
        await live()
    assert caught.value.split(LedgerError)[1] is None, "a dead machine's ledger ends in nothing else"
    assert durable == [entry(1).envelope.raw]
    assert machine.db.execute("SELECT count(*) FROM entry").fetchone() == (1,)
    machine.close()
