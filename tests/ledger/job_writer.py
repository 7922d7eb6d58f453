"""Posts whole signed jobs until it is killed, and says which are durable: run by tests as a process of its own.

It forks a writer for every line that it reads: 200 starts of Python would take longer than all the writing.
"""

import os
import sys
from pathlib import Path

import trio

from node.ledger.ledger import Ledger
from tests.ledger.jobs import entries_of, row_of, signed_job


async def write(path: Path, first: int) -> None:
    ledger = Ledger(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        for lane in range(2):
            nursery.start_soon(post_on, ledger, first + lane)


async def post_on(ledger: Ledger, number: int) -> None:
    while True:
        job = signed_job(number)
        await ledger.post(*entries_of(job)[:3])
        await ledger.post(*entries_of(job)[3:], row=row_of(job))
        # One write, so that no line is cut in half.
        os.write(1, f"{number}\n".encode())
        number += 2


def main() -> None:
    path = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            trio.run(write, path, int(line))
        os.write(1, f"pid {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"ended\n")


if __name__ == "__main__":
    main()
