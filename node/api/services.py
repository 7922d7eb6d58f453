"""What the API needs from the rest of the daemon, as interfaces: it knows no concrete class of theirs."""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from node.api.bench_routes import Bench
from node.api.feed import Feed
from node.api.job_views import JobTrace
from node.api.model_routes import Shelf
from node.api.operator_routes import Operator
from node.api.peer_routes import Peers
from node.api.views import (
    BundleView,
    DeviceView,
    JobView,
    Json,
    ModelView,
    PeerView,
    ReceiptView,
    StatusView,
)
from node.api.why_node import NodeFacts
from node.config import ApiSection
from node.ledger.audit import Audit
from node.ledger.books import ListedEntry, PeerAccount
from node.ledger.entries import StoredProof
from node.ledger.settlement import ListedStatement, SettlementEnvelopes
from node.logs import LogRing
from node.market.order import JobEvent, Order
from node.market.quotes import Enquiry, QuoteReply
from node.market.settlement_exchange import Outcome
from node.metrics import Metrics
from protocol.units import JobId, Microcredits, PeerId


class Market(Protocol):
    """Carries orders out."""

    async def submit(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> None:
        """Run the whole order; send every event, ``Finished`` last, and return.

        A full ``sink`` makes the consumer of the job wait. Cancelling cancels the job.

        Raises: OrderError: one of its subclasses in ``node.market.order``.
        """

    async def cancel(self, job_id: JobId) -> bool:
        """End an open order as if its user had left, and wait for that; return whether there was one."""


class Books(Protocol):
    """The ledger as people look into it; each raises LedgerError."""

    async def peer_accounts(self) -> list[PeerAccount]: ...

    async def entries_after(self, number: int, limit: int) -> list[ListedEntry]: ...

    async def proofs(self, limit: int) -> tuple[int, list[StoredProof]]: ...

    async def audit(self) -> Audit: ...

    async def statements(self, peer_id: PeerId | None, limit: int) -> list[ListedStatement]: ...

    async def settlement_envelopes(self, peer_id: PeerId) -> SettlementEnvelopes | None: ...


class View(Protocol):
    """The daemon's facts as plain data; everything but the ledger's is at hand at once."""

    async def status(self) -> StatusView:
        """Raises: LedgerError."""

    def peers(self) -> Sequence[PeerView]: ...

    def models(self) -> Sequence[ModelView]: ...

    def devices(self) -> Sequence[DeviceView]: ...

    def advert(self) -> dict[str, Json] | None:
        """Return what others see of this node, or None while nothing is advertised."""

    def jobs(self) -> Sequence[JobView]:
        """Return the newest jobs, those that began last first."""

    def find_jobs(self, prefix: str) -> Sequence[JobTrace]:
        """Return the jobs whose own or whose contract's hex id starts so."""

    def facts(self) -> NodeFacts:
        """Return what decides whether this node can serve and buy."""

    def readiness(self) -> dict[str, str]:
        """Return each check with ``ok`` or the reason why not."""

    def books(self) -> Books: ...

    async def receipts(self, limit: int) -> Sequence[ReceiptView]:
        """Return at most ``limit`` contracts, the latest first. Raises: LedgerError."""

    async def bundle(self, contract_id_prefix: str) -> BundleView | None:
        """Return the evidence of the one contract whose hex id starts so. Raises: LedgerError."""


def _seed() -> int:
    return secrets.randbits(63)


def _job_id() -> JobId:
    return JobId(secrets.token_bytes(16))


def _unix_s() -> int:
    return int(time.time())


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All that the API is given."""

    config: ApiSection
    token: str
    """Whoever shows it may do everything."""
    token_file: str
    """Where it is in the home."""
    rotate_token: Callable[[], Awaitable[str]]
    """Put another token into the home and return it. Raises: HomeError."""
    market: Market
    view: View
    connect: Callable[[str], Awaitable[PeerId]]
    """Dial a multiaddr. Raises: TransportError."""
    quotes: Callable[[Enquiry | Order], Awaitable[list[QuoteReply]]]
    """Ask every peer with a model for binding terms. Raises: OrderError, LedgerError."""
    settle: Callable[[PeerId, Microcredits], Awaitable[Outcome]]
    """Propose a statement to a peer, with what it has just paid. Raises: SettlementError, NodeError."""
    peers: Peers
    operator: Operator
    shelf: Shelf
    """Takes models of the store into service and out of it."""
    bench: Bench
    """Measures a device of ours."""
    shutdown: Callable[[], None]
    """Ask the daemon to stop; called after the answer is out."""
    feed: Feed
    """What ``/api/v1/jobs/events`` tells."""
    metrics: Metrics
    """Where requests are counted."""
    scrape: Callable[[str], Awaitable[tuple[bytes, str]]]
    """Return all metrics and their content type for an ``Accept`` header."""
    log_lines: LogRing
    """The newest lines of the daemon's log."""
    draw_seed: Callable[[], int] = _seed
    """A seed in 0..2⁶³-1 for a request that brings none."""
    draw_job_id: Callable[[], JobId] = _job_id
    """Of a detached job: its client is told before the market has begun."""
    unix_s: Callable[[], int] = _unix_s
    unix_ms: Callable[[], int] = _unix_ms
