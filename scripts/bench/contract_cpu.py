"""What one contract costs in processor time, both sides together: signing, verifying, writing down.

A job of two voucher windows is traded between two parties in this process; then its very messages are signed,
verified and written again, each alone. Processor time of the process, all threads, both parties.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.ledger.entries import Entry
from node.ledger.ledger import Ledger
from protocol.contract import Accept, Cancel, Contract
from protocol.envelope import Envelope
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.units import MessageId
from protocol.voucher import Meter, Voucher
from scripts.bench.measure import Report, parser_of
from scripts.bench.two_parties import Posting, TwoParties

WINDOW_TOKENS: Final = 32
TOKENS: Final = 2 * WINDOW_TOKENS
WARM_UP_JOBS: Final = 3
MESSAGES: Final[tuple[type[SignedMessage], ...]] = (Contract, Accept, Meter, Voucher, Receipt, Closing, Cancel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds of one step of one job."""

    cpu_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """One job: as a whole, and its parts repeated alone."""

    whole: Cost
    sign: Cost
    verify: Cost
    ledger: Cost
    messages: int
    postings: int

    @property
    def contract_cpu_ms(self) -> float:
        return self.sign.cpu_ms + self.verify.cpu_ms + self.ledger.cpu_ms


def main() -> None:
    parser = parser_of(__doc__, rounds=50)
    options = parser.parse_args()
    report = Report("contract")
    with tempfile.TemporaryDirectory(prefix="souk-bench-") as folder:
        trio.run(measure, report, Path(folder), options.rounds)
    report.print(as_json=options.json)


async def measure(report: Report, folder: Path, rounds: int) -> None:
    parties = TwoParties(folder)
    again = (Ledger(folder / "requester-again.db"), Ledger(folder / "provider-again.db"))
    async with trio.open_nursery() as nursery:
        await nursery.start(parties.run)
        for ledger in again:
            await nursery.start(ledger.run)
        jobs = [await measure_job(parties, again) for _ in range(WARM_UP_JOBS + rounds)][WARM_UP_JOBS:]
        nursery.cancel_scope.cancel()
    report.settings |= {
        "tokens_out": TOKENS,
        "window_tokens": WINDOW_TOKENS,
        "messages": jobs[0].messages,
        "postings": jobs[0].postings,
    }
    report.add("sign + verify + ledger", "CPU ms/job", [job.contract_cpu_ms for job in jobs])
    report.add(f"sign, {jobs[0].messages} messages", "CPU ms/job", [job.sign.cpu_ms for job in jobs])
    report.add(f"verify, {jobs[0].messages} messages", "CPU ms/job", [job.verify.cpu_ms for job in jobs])
    report.add(f"ledger, {jobs[0].postings} postings", "CPU ms/job", [job.ledger.cpu_ms for job in jobs])
    report.add(
        "market and stream beside them", "CPU ms/job", [job.whole.cpu_ms - job.contract_cpu_ms for job in jobs]
    )
    report.add("ledger, waiting for the disk too", "wall ms/job", [job.ledger.wall_ms for job in jobs])
    report.add("whole job", "wall ms/job", [job.whole.wall_ms for job in jobs])


async def measure_job(parties: TwoParties, again: tuple[Ledger, Ledger]) -> JobCost:
    calls: list[list[Posting | MessageId]] = []

    async def trade() -> None:
        await parties.trade(TOKENS)
        calls.extend(ledger.calls for ledger in parties.ledgers)

    whole = await timed(trade)
    envelopes = list({entry.envelope.message_id: entry.envelope for entry in entries_of(calls)}.values())
    signed = [read(parties, envelope) for envelope in envelopes]

    async def sign() -> None:
        for message in signed:
            party = parties.requester if message.signer == parties.requester.peer_id else parties.provider
            party.sign(message.message)

    async def verify() -> None:
        for envelope in envelopes:
            read(parties, envelope)

    async def write() -> None:
        for ledger, own_calls in zip(again, calls, strict=True):
            for call in own_calls:
                if isinstance(call, Posting):
                    await ledger.post(*call.entries, row=call.row)
                else:
                    await ledger.knows(call)

    return JobCost(
        whole=whole,
        sign=await timed(sign),
        verify=await timed(verify),
        ledger=await timed(write),
        messages=len(envelopes),
        postings=sum(isinstance(call, Posting) for own_calls in calls for call in own_calls),
    )


def entries_of(calls: Iterable[Iterable[Posting | MessageId]]) -> Iterator[Entry]:
    for own_calls in calls:
        for call in own_calls:
            if isinstance(call, Posting):
                yield from call.entries


def read(parties: TwoParties, envelope: Envelope) -> Signed[SignedMessage]:
    return read_untrusted(envelope.raw, network=parties.requester.network, allowed=MESSAGES)


async def timed(step: Callable[[], Awaitable[None]]) -> Cost:
    """Run ``step``; its cost is the whole process's, since the ledgers write on threads of their own."""
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    await step()
    return Cost(
        cpu_ms=(time.process_time_ns() - cpu) / 1e6,
        wall_ms=(time.perf_counter_ns() - wall) / 1e6,
    )


if __name__ == "__main__":
    main()
