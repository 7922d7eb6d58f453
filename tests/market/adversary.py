"""Peers that take what they can and pay only where that gets them more: real admission and ledger, no market.

One schedule is drawn from a seed: identities that whitewash, build trust and run, take windows side by side, send
old messages again, and a provider that crashes in between. What was given and what came in is counted here, apart.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from node.config import MarketSection
from node.ledger.schema import MIGRATIONS
from node.ledger.standing import standings
from node.market.admission import Admission, Hold, Place, Refused
from node.market.exposures import PERMILLE_PER_PERCENT, credit_rule
from protocol.exposure import ExposureRule
from protocol.states import ProviderState
from protocol.units import MS_PER_S, MessageId, Microcredits, PeerId, UnixMs

IDENTITIES_MAX: Final = 30
STEPS: Final = 60
WHITEWASH_SHARE: Final = 0.1
PLACES: Final = 100_000
EPOCH_MS: Final = 1_800_000_000_000
DAY_S: Final = 24 * 3_600
HOLD_S: Final = 15.0
NO_QUOTE: Final = MessageId(bytes(32))
ACTIONS: Final = ("take", "window", "voucher", "end", "pay", "replay", "crash", "quote", "wait")


class NaiveRule(ExposureRule):
    """The negative control: a peer leaves the newcomers' pool once it has settled anything."""

    def from_pool(self, exposure: int, settled: int) -> Microcredits:
        return Microcredits(0 if settled else exposure)

    def room(self, *, exposure: int, settled: int, pool_used: int) -> Microcredits:
        own = self.limit(settled) - exposure
        return Microcredits(max(own if settled else min(own, self.pool - pool_used), 0))


@dataclass
class Deal:
    """One contract as the adversary sees it."""

    contract_id: MessageId
    peer: PeerId
    made_at: float
    reserve: int
    metered: int = 0
    vouchered: int = 0


@dataclass
class Closest:
    """How near the worst moments came to the bounds; 1.0 is the bound itself."""

    peer: float = 0.0
    total: float = 0.0
    total_after_settling: float = 0.0
    """The same where something had been settled, so that the earned part of the bound counts."""


@dataclass
class Schedule:
    """Everything one seed does."""

    seed: int
    rule: Callable[..., ExposureRule] = ExposureRule
    forgive_after_days: int = 0
    closest: Closest = field(default_factory=Closest)

    def __post_init__(self) -> None:
        self.rng = rng = Random(self.seed)
        new_peer = rng.randrange(10, 400)
        self.market = MarketSection(
            credit_new_peer=new_peer,
            credit_peer_max=rng.randrange(new_peer, 4_000),
            credit_pool_new=rng.randrange(new_peer, new_peer * 12),
            earned_percent=rng.choice((0, 10, 50, 90, 99)),
            forgive_after_days=self.forgive_after_days,
        )
        self.limits = credit_rule(self.market)
        self.peers = [PeerId(rng.randbytes(32)) for _ in range(rng.randrange(1, IDENTITIES_MAX + 1))]
        self.weights = [rng.random() ** 2 for _ in ACTIONS]
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for migration in MIGRATIONS:
            self.db.executescript(migration)
        self.now, self.made = 0.0, 0
        self.open: list[Deal] = []
        self.over: list[Deal] = []
        self.quotes: list[tuple[MessageId, PeerId, int]] = []
        self.given = dict.fromkeys(self.peers, 0)
        self.received = dict.fromkeys(self.peers, 0)
        self.payments: list[tuple[float, PeerId, int]] = []
        self.crash_cost = 0
        self.start()

    def start(self) -> None:
        """Start the provider from what its ledger holds."""
        self.admission = Admission(self.market)
        if self.rule is not ExposureRule:
            self.admission._exposures.rule = self.rule(
                new_peer=self.limits.new_peer,
                peer_max=self.limits.peer_max,
                pool=self.limits.pool,
                earned_permille=self.market.earned_percent * PERMILLE_PER_PERCENT,
            )
        self.admission.slots = PLACES
        found = standings(self.db, self.now_ms, self.forgive_after_days)
        self.admission.remember(found, now=self.now)

    @property
    def now_ms(self) -> UnixMs:
        return UnixMs(EPOCH_MS + round(self.now * MS_PER_S))

    def run(self) -> None:
        if self.rng.random() < WHITEWASH_SHARE:
            # Every identity buys next to nothing and settles it.
            for peer in self.peers:
                if (deal := self.offer(peer, 1)) and self.take_window(deal, 1):
                    self.end_as(deal, ProviderState.CLOSED)
                    self.settle(peer, 1)
        for _ in range(STEPS):
            (action,) = self.rng.choices(ACTIONS, self.weights)
            getattr(self, action)()
            self.judge()
        # Whatever the plan was: now everybody takes all that is left, and runs.
        for peer in self.rng.sample(self.peers, len(self.peers)):
            self.drain(peer)
        self.judge()
        self.crash()
        self.judge()

    # What identities do.

    def take(self) -> None:
        """Offer a contract, on a quote or without one."""
        quote_id, peer, reserve = NO_QUOTE, self.rng.choice(self.peers), self.rng.randrange(1, 200)
        if self.quotes and self.rng.random() < 0.5:
            quote_id, peer, reserve = self.quotes.pop(self.rng.randrange(len(self.quotes)))
        self.offer(peer, reserve, quote_id)

    def offer(self, peer: PeerId, reserve: int, quote_id: MessageId = NO_QUOTE) -> Deal | None:
        self.made += 1
        deal = Deal(MessageId(self.made.to_bytes(32)), peer, self.now, reserve)
        place = Place(peer_id=peer, reserve=Microcredits(reserve))
        try:
            self.admission.take(deal.contract_id, place, quote_id=quote_id, now=self.now)
        except Refused:
            return None
        self.admission.input_read(deal.contract_id)
        self.open.append(deal)
        self.store(deal, ProviderState.RUNNING)
        return deal

    def window(self) -> None:
        if self.open:
            self.take_window(self.rng.choice(self.open), self.rng.randrange(1, 80))

    def take_window(self, deal: Deal, cost: int) -> bool:
        """Let the provider deliver a window, as it does: only when the sum with it is allowed."""
        if not self.admission.window_allowed(deal.contract_id, Microcredits(deal.metered + cost), now=self.now):
            return False
        deal.metered += cost
        self.given[deal.peer] += cost
        self.store(deal, ProviderState.RUNNING)
        return True

    def voucher(self) -> None:
        if self.open:
            deal = self.rng.choice(self.open)
            deal.vouchered = self.rng.randint(deal.vouchered, deal.metered)
            self.store(deal, ProviderState.RUNNING)

    def end(self) -> None:
        """End a contract: paid by voucher or not, or by a failure of the provider's."""
        if not self.open:
            return
        deal = self.open.pop(self.rng.randrange(len(self.open)))
        state = self.rng.choice((ProviderState.CLOSED, ProviderState.UNPAID, ProviderState.FAILED))
        unpaid = deal.metered - deal.vouchered
        if state is ProviderState.FAILED:
            self.fail(deal)
            unpaid = 0
        self.store(deal, state)
        self.over.append(deal)
        self.admission.settle(deal.contract_id, unpaid=unpaid, vouchered=deal.vouchered)

    def pay(self) -> None:
        """Settle some or all of what is over."""
        peer = self.rng.choice(self.peers)
        owed = sum(deal.metered for deal in self.over if deal.peer == peer) - self.received[peer]
        if owed > 0:
            self.settle(peer, self.rng.choice((1, owed, self.rng.randint(1, owed))))

    def settle(self, peer: PeerId, paid: int) -> None:
        self.received[peer] += paid
        self.payments.append((self.now, peer, paid))
        self.db.execute(
            "INSERT INTO settled VALUES (?, ?, ?, 0, ?)",
            (peer, len(self.payments), self.received[peer], self.now_ms),
        )
        self.admission.settled(peer, Microcredits(self.received[peer]))

    def replay(self) -> None:
        """Send an old contract and an old settlement again."""
        if self.over:
            deal = self.rng.choice(self.over)
            place = Place(peer_id=deal.peer, reserve=Microcredits(deal.reserve))
            try:
                self.admission.take(deal.contract_id, place, quote_id=NO_QUOTE, now=self.now)
            except Refused:
                pass
            else:
                # The ledger knows it, so the provider gives the place back (``Provider._accept``).
                self.admission.settle(deal.contract_id, unpaid=0)
        if self.open:
            deal = self.rng.choice(self.open)
            place = Place(peer_id=deal.peer, reserve=Microcredits(1))
            try:
                self.admission.take(deal.contract_id, place, quote_id=NO_QUOTE, now=self.now)
            except Refused:
                pass
            else:
                raise AssertionError("an open contract was taken twice")
        peer = self.rng.choice(self.peers)
        self.admission.settled(peer, Microcredits(self.rng.randint(0, self.received[peer])))

    def quote(self) -> None:
        self.made += 1
        quote_id, peer = MessageId(self.made.to_bytes(32)), self.rng.choice(self.peers)
        reserve = self.rng.randint(1, 200)
        hold = Hold(peer_id=peer, reserve=Microcredits(reserve), until=self.now + HOLD_S)
        try:
            self.admission.hold(quote_id, hold, now=self.now)
        except Refused:
            return
        self.quotes.append((quote_id, peer, reserve))

    def wait(self) -> None:
        """Let quotes lapse, and where debts are forgiven, days pass; no contract is open for that long."""
        if self.forgive_after_days and self.rng.random() < 0.5:
            while self.open:
                self.end()
            self.now += self.rng.uniform(0.0, 1.5 * DAY_S)
        self.now += self.rng.uniform(0.0, 2 * HOLD_S)

    def crash(self) -> None:
        """Lose everything but the ledger; it ends what was running as a failure of ours (spec 05, section 6)."""
        for deal in self.open:
            self.fail(deal)
            self.store(deal, ProviderState.FAILED)
        self.over += self.open
        self.open, self.quotes = [], []
        self.start()
        if self.rule is not ExposureRule or self.forgive_after_days:
            return
        # Nothing is open now, so what the ledger says must be what was counted here.
        used = sum(self.limits.from_pool(self.lost(peer), self.received[peer]) for peer in self.peers)
        for peer in self.peers:
            left = self.limits.room(exposure=self.lost(peer), settled=self.received[peer], pool_used=used)
            assert self.admission.credit_left(peer, self.now) == left, f"seed {self.seed}"

    def drain(self, peer: PeerId) -> None:
        """Take all that one identity gets, by small windows and at last to the microcredit."""
        if (left := self.admission.credit_left(peer, self.now)) and (deal := self.offer(peer, min(left, 7))):
            while self.take_window(deal, self.rng.randrange(1, 90)):
                pass
            rest = self.admission._exposures.reserved(deal.contract_id) - deal.metered
            self.take_window(deal, rest + self.admission.credit_left(peer, self.now))
            self.end_as(deal, ProviderState.UNPAID)

    def end_as(self, deal: Deal, state: ProviderState) -> None:
        self.open.remove(deal)
        self.over.append(deal)
        self.store(deal, state)
        self.admission.settle(deal.contract_id, unpaid=deal.metered - deal.vouchered, vouchered=deal.vouchered)

    # The books, kept apart.

    def fail(self, deal: Deal) -> None:
        """What our own failure costs beyond the vouchers is our loss, not the peer's."""
        self.crash_cost += deal.metered - deal.vouchered
        self.given[deal.peer] -= deal.metered - deal.vouchered
        deal.metered = deal.vouchered

    def store(self, deal: Deal, state: ProviderState) -> None:
        at_ms = EPOCH_MS + round(deal.made_at * MS_PER_S)
        self.db.execute(
            "REPLACE INTO contract"
            " (contract_id, job_id, role, peer_id, model_id, model, state, tokens_in, tokens_out, metered,"
            " vouchered, at_ms) VALUES (?, x'00', 'provider', ?, x'00', 'tiny', ?, 1, 1, ?, ?, ?)",
            (deal.contract_id, deal.peer, str(state), deal.metered, deal.vouchered, at_ms),
        )

    def lost(self, peer: PeerId) -> int:
        """Return what a peer has got and not settled, of the time that counts."""
        if not self.forgive_after_days:
            return self.given[peer] - self.received[peer]
        since = self.now - self.forgive_after_days * DAY_S
        given = sum(it.metered for it in (*self.open, *self.over) if it.peer == peer and it.made_at > since)
        return given - sum(paid for at, payer, paid in self.payments if payer == peer and at > since)

    def judge(self) -> None:
        """Hold both bounds against the independent count; a naive rule is only measured."""
        lost = {peer: self.lost(peer) for peer in self.peers}
        earned = sum(self.received.values()) * self.market.earned_percent / 100
        bound = self.limits.pool + earned
        total = sum(lost.values())
        closest = self.closest
        for peer, sum_lost in lost.items():
            closest.peer = max(closest.peer, sum_lost / self.limits.limit(self.received[peer]))
        closest.total = max(closest.total, total / bound)
        if earned:
            closest.total_after_settling = max(closest.total_after_settling, total / bound)
        if self.rule is ExposureRule:
            assert closest.peer <= 1.0, f"seed {self.seed}: a peer got {closest.peer:.3f} of its limit"
            in_percent = self.limits.pool * 100 + sum(self.received.values()) * self.market.earned_percent
            assert total * 100 <= in_percent, f"seed {self.seed}: all peers got {total / bound:.3f} of the bound"
