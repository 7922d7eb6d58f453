"""A process that posts to a ledger until it is killed, and says which posting is durable: run by tests."""

import sys
from pathlib import Path

import trio

from node.ledger.ledger import Ledger
from tests.ledger.fakes import entry, row


async def write(path: Path, first: int) -> None:
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        for lane in range(4):
            nursery.start_soon(post_on, ledger, first + lane)


async def post_on(ledger: Ledger, number: int) -> None:
    while True:
        await ledger.post(entry(number, contract=number), row=row(number))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 4


if __name__ == "__main__":
    trio.run(write, Path(sys.argv[1]), int(sys.argv[2]))
