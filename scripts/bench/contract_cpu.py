"""What a contract costs each party in processor time (signing, verifying, writing down), and a ledger's rate.

A job of two voucher windows is traded between two parties in this process; then its very messages are signed,
verified and written again, each alone. Processor time of the process, all threads. Then one ledger is posted to by
one task, and by many at once.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio

from node.clock import system_entropy, system_time
from node.keystore import SEED_BYTES, Ed25519Signer
from node.ledger.entries import ContractRow, Entry
from node.ledger.ledger import Ledger
from node.market.party import Party
from protocol.contract import Accept, Cancel, Contract
from protocol.envelope import Envelope, network_id
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage, read_untrusted, sign
from protocol.states import ProviderState
from protocol.units import JobId, MessageId, Microcredits, ModelId
from protocol.voucher import Meter, Voucher
from scripts.bench.measure import Report, parser_of
from scripts.bench.two_parties import Posting, TwoParties

WINDOW_TOKENS: Final = 32
TOKENS: Final = 2 * WINDOW_TOKENS
WARM_UP_JOBS: Final = 3
SIDES: Final = ("requester", "provider")
POSTERS: Final = (1, 50)
RATE_POSTINGS: Final = 1_000
RATE_ROUNDS: Final = 3
MESSAGES: Final[tuple[type[SignedMessage], ...]] = (Contract, Accept, Meter, Voucher, Receipt, Closing, Cancel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds of one step of one job."""

    cpu_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCost:
    """What one party did for one job, repeated alone."""

    sign: Cost
    verify: Cost
    ledger: Cost
    postings: int

    @property
    def cpu_ms(self) -> float:
        return self.sign.cpu_ms + self.verify.cpu_ms + self.ledger.cpu_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCost:
    """One job: as a whole, and its parts."""

    whole: Cost
    sides: dict[str, SideCost]
    messages: int

    @property
    def cpu_ms(self) -> float:
        return sum(side.cpu_ms for side in self.sides.values())


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
    first = jobs[0]
    postings = {side: first.sides[side].postings for side in SIDES}
    report.settings |= {
        "tokens_out": TOKENS,
        "window_tokens": WINDOW_TOKENS,
        "messages": first.messages,
        "postings": sum(postings.values()),
    }
    for side in SIDES:
        costs = [job.sides[side] for job in jobs]
        report.add(f"{side}: sign + verify + ledger", "CPU ms/job", [it.cpu_ms for it in costs])
        report.add(f"{side}: sign", "CPU ms/job", [it.sign.cpu_ms for it in costs])
        report.add(f"{side}: verify", "CPU ms/job", [it.verify.cpu_ms for it in costs])
        report.add(f"{side}: ledger, {postings[side]} postings", "CPU ms/job", [it.ledger.cpu_ms for it in costs])
        report.add(f"{side}: ledger with its waits", "wall ms/job", [it.ledger.wall_ms for it in costs])
    report.add("both: sign + verify + ledger", "CPU ms/job", [job.cpu_ms for job in jobs])
    report.add("both: market and stream beside it", "CPU ms/job", [job.whole.cpu_ms - job.cpu_ms for job in jobs])
    report.add("both: whole job", "wall ms/job", [job.whole.wall_ms for job in jobs])
    for posters in POSTERS:
        rates = [await post_rate(folder / f"rate-{posters}-{number}.db", posters) for number in range(RATE_ROUNDS)]
        who = "1 poster" if posters == 1 else f"{posters} posters"
        report.add(f"ledger: {who}", "acked rows/s", rates)


async def measure_job(parties: TwoParties, again: tuple[Ledger, Ledger]) -> JobCost:
    calls: list[list[Posting]] = []

    async def trade() -> None:
        await parties.trade(TOKENS)
        calls.extend(ledger.calls for ledger in parties.ledgers)

    whole = await timed(trade)
    envelopes = list({entry.envelope.message_id: entry.envelope for entry in entries_of(calls)}.values())
    signed = [read(parties, envelope) for envelope in envelopes]
    sides = {
        side: await measure_side(parties, party, signed, ledger, own_calls)
        for side, party, ledger, own_calls in zip(
            SIDES, (parties.requester, parties.provider), again, calls, strict=True
        )
    }
    return JobCost(whole=whole, sides=sides, messages=len(envelopes))


async def measure_side(
    parties: TwoParties,
    party: Party,
    signed: list[Signed[SignedMessage]],
    ledger: Ledger,
    calls: list[Posting],
) -> SideCost:
    """Repeat what one party did: sign its own messages, verify the other's, write what it wrote."""

    async def sign() -> None:
        for message in signed:
            if message.signer == party.peer_id:
                party.sign(message.message)

    async def verify() -> None:
        for message in signed:
            if message.signer != party.peer_id:
                read(parties, message.envelope)

    async def write() -> None:
        for call in calls:
            await ledger.post(*call.entries, row=call.row, is_new=call.is_new)

    return SideCost(
        sign=await timed(sign),
        verify=await timed(verify),
        ledger=await timed(write),
        postings=len(calls),
    )


async def post_rate(path: Path, posters: int) -> float:
    """Return how many postings a second a new ledger acknowledges: a message and its contract's row each."""
    ledger = Ledger(path)
    rows = posting_rows(RATE_POSTINGS)

    async def post_some(first: int) -> None:
        for entry, row in rows[first::posters]:
            await ledger.post(entry, row=row)

    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
        began = time.perf_counter()
        async with trio.open_nursery() as posting:
            for first in range(posters):
                posting.start_soon(post_some, first)
        rate = RATE_POSTINGS / (time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    return rate


def posting_rows(count: int) -> list[tuple[Entry, ContractRow]]:
    """Return postings of as many contracts: the dearest kind, since nothing of them is in the ledger yet."""
    party = Ed25519Signer(system_entropy(SEED_BYTES))
    network = network_id({"name": "bench"})
    made = []
    for number in range(count):
        contract_id = MessageId(sha256(b"%d" % number).digest())
        voucher = Voucher(contract_id=contract_id, number=1, cumulative=number, meter=1)
        job_id = JobId(contract_id[:16])
        entry = Entry(
            envelope=sign(voucher, network=network, signer=party).envelope,
            job_id=job_id,
            peer_id=party.peer_id,
            contract_id=contract_id,
            at_ms=system_time(),
        )
        row = ContractRow(
            contract_id=contract_id,
            job_id=job_id,
            role="provider",
            peer_id=party.peer_id,
            model_id=ModelId(bytes(32)),
            model="nothing",
            state=ProviderState.CLOSED,
            tokens_in=1,
            tokens_out=1,
            metered=Microcredits(number),
            vouchered=Microcredits(number),
            at_ms=entry.at_ms,
        )
        made.append((entry, row))
    return made


def entries_of(calls: Iterable[Iterable[Posting]]) -> Iterator[Entry]:
    for own_calls in calls:
        for call in own_calls:
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
