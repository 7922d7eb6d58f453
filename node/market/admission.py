"""What a provider takes on: places, held places, and how much each peer may owe (spec 05, section 7).

Pure bookkeeping in one place, so that no two conversations give the same place away. Times are trio's.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from node.config import MarketSection
from node.ledger.standing import Standings
from node.market.exposures import Exposures, credit_rule, forgive_s
from protocol.errors import DeclineCode
from protocol.units import MS_PER_S, MessageId, Microcredits, PeerId

# Of all places, what one peer may keep by quotes it does not use and contracts whose input it does not send: they
# cost it nothing, and one key could otherwise close a provider.
IDLE_SHARE: Final = 4
# What a place is worth waiting for when nothing is known about running jobs.
RETRY_MS: Final = 1 * MS_PER_S


class Refused(Exception):  # noqa: N818 - an answer to a peer, not a fault
    """The job is not taken; the fields go into a ``decline``."""

    def __init__(
        self,
        code: DeclineCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        tokens_max: int | None = None,
        price_min: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.tokens_max = tokens_max
        self.price_min = price_min


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """Why no peer's job is taken now, in words for peers."""

    message: str
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A place promised by a quote until ``until`` (trio time)."""

    peer_id: PeerId
    reserve: Microcredits
    until: float
    market: MarketSection | None = None
    """The settings that the quote was made with: it binds, also when they change before it lapses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A job that was taken: it occupies a place until it has run, and credit until it is paid."""

    peer_id: PeerId
    reserve: Microcredits


class Admission:
    """Counts places and exposure. ``slots`` and ``queue_max`` together are the places; zero takes nothing."""

    def __init__(self, market: MarketSection, *, banned: Container[PeerId] = frozenset()) -> None:
        """``banned`` peers get nothing; it may change at any time."""
        self._banned = banned
        self._exposures = Exposures(credit_rule(market), forgive_s=forgive_s(market))
        self._holds: dict[MessageId, Hold] = {}
        self._running: set[MessageId] = set()
        self._taken_on: dict[MessageId, tuple[Place, float]] = {}
        """Contracts that are not over, and since when."""
        self._unread: set[MessageId] = set()
        self.slots = 0
        self.queue_max = 0
        self.closed: Closed | None = None
        """Why nothing new is taken; what was taken on goes on."""

    def reconfigure(self, market: MarketSection) -> None:
        """Follow other limits from now on; how long debts count stays as it was."""
        self._exposures.change_rule(credit_rule(market))

    @property
    def running(self) -> int:
        """Jobs that hold a place now, waiting ones included."""
        return len(self._running)

    @property
    def unsettled(self) -> int:
        """Contracts that were taken and are not settled yet: each reserves credit."""
        return len(self._taken_on)

    def credit_given(self, now: float) -> Microcredits:
        """Return what all peers together have open here: reserved, or owed and not settled."""
        self._drop_lapsed(now)
        return self._exposures.total(now)

    def slots_free(self, now: float) -> int:
        return max(self.slots - self._taken(now), 0)

    def remember(self, standings: Standings, *, now: float) -> None:
        """Take over what peers owed at the last stop."""
        self._exposures.remember(standings.sold, standings.read_at_ms, now=now)

    def hold(self, quote_id: MessageId, hold: Hold, *, now: float) -> None:
        """Keep a place for a quote. Raises: Refused (busy, credit, draining)."""
        self._check(hold.peer_id, hold.reserve, now)
        self._keep(quote_id, hold)

    def drop_hold(self, quote_id: MessageId) -> None:
        """Give a held place back: the quote never left."""
        if self._holds.pop(quote_id, None) is not None:
            self._exposures.release(quote_id)

    def held_for(self, quote_id: MessageId, peer_id: PeerId, now: float) -> bool:
        """Return whether this peer has a hold that still stands."""
        hold = self._holds.get(quote_id)
        return hold is not None and hold.peer_id == peer_id and hold.until > now

    def promised(self, quote_id: MessageId, peer_id: PeerId, now: float) -> MarketSection | None:
        """Return the settings that a quote which still stands was made with."""
        return self._holds[quote_id].market if self.held_for(quote_id, peer_id, now) else None

    def take(self, contract_id: MessageId, place: Place, *, quote_id: MessageId, now: float) -> None:
        """Take a job on, into its held place if there is one. Raises: Refused."""
        if contract_id in self._taken_on:
            raise Refused(DeclineCode.EXPIRED, "this contract has been taken already")
        hold = self._holds[quote_id] if self.held_for(quote_id, place.peer_id, now) else None
        if hold is not None:
            self.drop_hold(quote_id)
        try:
            self._check(place.peer_id, place.reserve, now)
        except Refused:
            if hold is not None:
                self._keep(quote_id, hold)
            raise
        self._running.add(contract_id)
        self._unread.add(contract_id)
        self._taken_on[contract_id] = place, now
        self._exposures.reserve(contract_id, place.peer_id, place.reserve)

    def input_read(self, contract_id: MessageId) -> None:
        """Note that a peer has sent what its contract announced: its place is no idle one any more."""
        self._unread.discard(contract_id)

    def vacate(self, contract_id: MessageId) -> None:
        """Free the place; the credit stays reserved until ``settle``."""
        self._running.discard(contract_id)
        self._unread.discard(contract_id)

    def window_allowed(self, contract_id: MessageId, owed: Microcredits, *, now: float) -> bool:
        """Return whether an open contract may come to ``owed`` in all, vouchers included; if so, count it.

        A voucher is a promise: what it covers stays open, so a long answer grows beyond its first reserve.
        """
        more = owed - self._exposures.reserved(contract_id)
        if more <= 0:
            return True
        peer_id = self._taken_on[contract_id][0].peer_id
        self._drop_lapsed(now)
        if more > self._exposures.room(peer_id, now):
            return False
        self._exposures.reserve(contract_id, peer_id, owed)
        return True

    def settle(self, contract_id: MessageId, *, unpaid: int, vouchered: int = 0) -> None:
        """End a contract: free what is left of it, and count what is owed for it until a settlement covers it."""
        self.vacate(contract_id)
        if contract_id in self._taken_on:
            place, taken_at = self._taken_on.pop(contract_id)
            self._exposures.release(contract_id)
            if unpaid + vouchered > 0:
                self._exposures.owe(place.peer_id, unpaid + vouchered, at=taken_at)

    def promised_late(self, peer_id: PeerId, amount: int, *, now: float) -> None:
        """Count what a peer promised for a contract that left nothing but its vouchers to be owed."""
        if amount > 0:
            self._exposures.owe(peer_id, amount, at=now)

    def settled(self, peer_id: PeerId, received_total: Microcredits) -> None:
        """Note how much a peer has settled in all; it frees that much, and raises the peer's limit."""
        self._exposures.settled(peer_id, received_total)

    def credit_left(self, peer_id: PeerId, now: float) -> Microcredits:
        """Return what this peer may still owe: its own limit and the pool of all peers, whichever is less."""
        self._drop_lapsed(now)
        return self._exposures.room(peer_id, now)

    def check_credit(self, peer_id: PeerId, needed: int, now: float) -> None:
        """Raises: Refused (credit), with what is open and what the peer can do about it."""
        left = self.credit_left(peer_id, now)
        if needed > left:
            raise Refused(
                DeclineCode.CREDIT,
                f"{needed} µc of credit are needed, {left} µc are left:"
                f" {self._exposures.describe(peer_id, now)}; settle what is open, or wait",
            )

    def check_welcome(self, peer_id: PeerId) -> None:
        """Raises: Refused (draining): to this peer the node is closed."""
        if peer_id in self._banned:
            raise Refused(DeclineCode.DRAINING, "the owner of this node takes no jobs of this peer")

    def _check(self, peer_id: PeerId, reserve: int, now: float) -> None:
        self.check_welcome(peer_id)
        if self.closed is not None:
            raise Refused(DeclineCode.DRAINING, self.closed.message, retry_after_ms=self.closed.retry_after_ms)
        if self._taken(now) >= self.slots + self.queue_max:
            raise Refused(
                DeclineCode.BUSY,
                f"all {self.slots} slots and {self.queue_max} waiting places are taken",
                retry_after_ms=RETRY_MS,
            )
        idle = sum(hold.peer_id == peer_id for hold in self._holds.values())
        idle += sum(self._taken_on[contract_id][0].peer_id == peer_id for contract_id in self._unread)
        idle_max = max((self.slots + self.queue_max) // IDLE_SHARE, 1)
        if idle >= idle_max:
            raise Refused(
                DeclineCode.BUSY,
                f"{idle} places are kept for this peer without a job in them, at most {idle_max} are",
                retry_after_ms=RETRY_MS,
            )
        self.check_credit(peer_id, reserve, now)

    def _keep(self, quote_id: MessageId, hold: Hold) -> None:
        self._holds[quote_id] = hold
        self._exposures.reserve(quote_id, hold.peer_id, hold.reserve)

    def _taken(self, now: float) -> int:
        self._drop_lapsed(now)
        return len(self._running) + len(self._holds)

    def _drop_lapsed(self, now: float) -> None:
        for quote_id in [quote_id for quote_id, hold in self._holds.items() if hold.until <= now]:
            self.drop_hold(quote_id)
