"""What a ledger does on a small disk of its own: run by tests in a mount namespace, prints one JSON object."""

import contextlib
import json
import sys
from pathlib import Path

import trio

from node.errors import LedgerDiskError, LedgerError
from node.ledger import ledger as ledger_module
from node.ledger.ledger import Ledger
from tests.ledger.fakes import entry, row

# Gone again, it leaves what a probe takes in the log and in the file.
BALLAST_BYTES = 12 << 20


async def fill(folder: Path) -> dict[str, object]:
    """Post until the disk is full, make room, and post on."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    ledger = Ledger(folder / "ledger.db")
    acknowledged: set[bytes] = set()

    async def post(number: int) -> None:
        it = entry(number, contract=number)
        await ledger.post(it, row=row(number))
        acknowledged.add(it.envelope.message_id)

    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        number = 0
        try:
            while True:
                await post(number)
                number += 1
        except LedgerDiskError:
            fault = str(ledger.health.fault)
        stored = {it.message_id for it in await ledger.entries_after(0, 1 << 20)}
        lost = len(acknowledged - stored)
        ballast.unlink()
        with trio.move_on_after(10) as patience:
            while ledger.health.fault is not None:
                await ledger.health.wait_change()
        for later in range(number, number + 20):
            await post(later)
        stored = {it.message_id for it in await ledger.entries_after(0, 1 << 20)}
        lost += len(acknowledged - stored)
        verified = await ledger.verify()
        nursery.cancel_scope.cancel()
    return {
        "fault": fault,
        "acknowledged": len(acknowledged),
        "lost": lost,
        "healed": not patience.cancelled_caught,
        "verified": verified,
    }


async def start(folder: Path) -> dict[str, object]:
    """Open a ledger where there is no room for one."""
    # As full as it gets, or read-only.
    with contextlib.suppress(OSError):
        (folder / "ballast").write_bytes(bytes(BALLAST_BYTES))
    try:
        await Ledger(folder / "ledger.db").run()
    except LedgerError as exc:
        return {"error": str(exc)}
    return {"error": ""}


def main() -> None:
    ledger_module.PROBE_S = (0.05, 0.1)  # type: ignore[misc]  # as tests do
    work = {"fill": fill, "start": start}[sys.argv[2]]
    print(json.dumps(trio.run(work, Path(sys.argv[1]))))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main()
