"""A disk that refuses costs nothing that was acknowledged, is told of once, and is found well again by itself."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio

from node.errors import LedgerDiskError, LedgerError
from node.ledger import ledger as ledger_module
from node.ledger.ledger import Ledger
from protocol.states import ProviderState
from tests.ledger.disks import Op, WatchedDisk
from tests.ledger.fakes import contract_id, entry, row

ROOT = Path(__file__).parents[2]
POSTINGS_MAX = 500


class Broken:
    """A ledger on a disk that can be made to refuse, each time as the real thing does."""

    def __init__(self, path: Path, how: str) -> None:
        self._how = how
        self._fails = False
        disk = WatchedDisk(path, before=self._before) if how == "failing" else None
        self.ledger = Ledger(path, disk)

    def _before(self, op: Op) -> None:
        if self._fails and op.kind in ("write", "sync"):
            raise apsw.IOError(f"{op.kind} failed")

    def refuse(self, refuses: bool) -> None:
        self._fails = refuses
        pragma = {
            # Clamped to what there is: every new page is one too many, as SQLite itself says it.
            "full": f"PRAGMA max_page_count={1 if refuses else 1 << 30}",
            "read-only": f"PRAGMA query_only={int(refuses)}",
        }.get(self._how)
        if pragma is not None:
            self.ledger._store.db.execute(pragma)


@pytest.fixture(params=["full", "read-only", "failing"])
def broken(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    monkeypatch.setattr(ledger_module, "PROBE_S", (0.01, 0.02))
    return Broken(tmp_path / "ledger.db", request.param)


async def post_until_refused(ledger: Ledger, first: int) -> int:
    """Return how many postings the disk took before it refused one."""
    for number in range(first, first + POSTINGS_MAX):
        try:
            await ledger.post(entry(number, contract=number), row=row(number, ProviderState.CLOSED))
        except LedgerDiskError:
            return number - first
    raise AssertionError("the disk took everything")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.message for it in caplog.records if it.name.startswith("node.ledger")]


async def test_ledger_goes_on_by_itself_when_its_disk_is_back(
    broken: Broken, caplog: pytest.LogCaptureFixture, figure: Callable[[str, object], None]
) -> None:
    caplog.set_level(logging.INFO)
    ledger, health = broken.ledger, broken.ledger.health
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        await ledger.post(entry(0, contract=0), row=row(0, ProviderState.CLOSED))
        broken.refuse(True)
        taken = 1 + await post_until_refused(ledger, 1)
        assert health.fault is not None and "cannot be written" in health.fault and "disk" in health.fault
        for _ in range(3):
            with pytest.raises(LedgerDiskError, match="cannot be written"):
                ledger.check_writable()
            # Those that were acknowledged are there, and can be read.
            assert len(await ledger.contracts(POSTINGS_MAX)) == taken
        changed = trio.Event()

        async def wait_change() -> None:
            await health.wait_change()
            changed.set()

        nursery.start_soon(wait_change)
        await ledger._probe()
        await ledger._probe()
        assert not changed.is_set() and health.failures >= 3, "probed, and still refused"
        broken.refuse(False)
        with trio.fail_after(5):
            await changed.wait()
        ledger.check_writable()
        await ledger.post(entry(900, contract=900), row=row(900))
        assert await ledger.verify() == taken + 1
        nursery.cancel_scope.cancel()
    # Each change once, however often it was tried.
    assert told(caplog) == ["ledger cannot be written", "ledger can be written again"]
    figure(f"disk: acknowledged rows lost, {broken._how}", f"0 of {taken}")


async def test_contract_that_the_disk_cut_ends_when_the_disk_is_back(broken: Broken) -> None:
    ledger = broken.ledger
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        await ledger.post(entry(1, contract=1), row=row(1, ProviderState.RUNNING, metered=9))
        await ledger.post(entry(2, contract=2), row=row(2, ProviderState.RUNNING, metered=9))
        broken.refuse(True)
        await post_until_refused(ledger, 10)
        for number in range(3, 3 + POSTINGS_MAX):
            try:
                # The one that is cut, in as many ways as it takes to need a page more.
                await ledger.post(entry(number, contract=1), row=row(1, ProviderState.FINISHED, metered=9))
            except LedgerDiskError:
                break
        broken.refuse(False)
        with trio.fail_after(5):
            await ledger.health.wait_change()
        states = {it.contract_id: it.state for it in await ledger.contracts(POSTINGS_MAX)}
        assert states[contract_id(1)] in (ProviderState.FAILED, ProviderState.UNPAID)
        # Nothing of it was refused: whoever works on it goes on.
        assert states[contract_id(2)] is ProviderState.RUNNING
        nursery.cancel_scope.cancel()


async def test_bad_posting_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        with pytest.raises(LedgerError) as caught:
            await ledger.post(row=row(1, metered=-1))
        assert not isinstance(caught.value, LedgerDiskError) and ledger.health.fault is None
        nursery.cancel_scope.cancel()


# A disk of its own, small and real.


def in_namespace(tmp_path: Path, options: str, *arguments: str) -> dict[str, Any]:
    """Run ``full_disk.py`` on a tmpfs that nobody else sees, and return what it found."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace cannot be made here (unshare -m): it takes root")
    program = [sys.executable, "-m", "tests.ledger.full_disk", str(tmp_path), *arguments]
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", script, str(tmp_path), *program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_ledger_outlives_a_real_disk_that_fills_up(tmp_path: Path, figure: Callable[[str, object], None]) -> None:
    found = in_namespace(tmp_path, "size=14m", "fill")
    assert "free space" in found["fault"] and "full" in found["fault"]
    assert found["acknowledged"] > 10 and found["lost"] == 0
    assert found["healed"] and found["verified"] == found["acknowledged"]
    figure("disk: acknowledged rows lost, tmpfs of 14 MiB filled", f"0 of {found['acknowledged']}")


@pytest.mark.slow
def test_start_says_what_to_do_when_the_disk_is_full(tmp_path: Path) -> None:
    found = in_namespace(tmp_path, "size=64k", "start")
    assert "free space" in found["error"] or "see to the disk" in found["error"], found


@pytest.mark.slow
def test_start_says_what_to_do_when_the_disk_is_read_only(tmp_path: Path) -> None:
    found = in_namespace(tmp_path, "size=1m,ro", "start")
    assert "see to the disk" in found["error"] or "writable" in found["error"], found
