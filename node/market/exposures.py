"""What is open with every peer at this moment, under one limit each and one for all (spec 05, section 7).

Pure bookkeeping that both sides use: ``admission.py`` for what peers may owe us, ``spending.py`` for what we put
at risk. A sum is *reserved* while its contract is open, then *owed* until it is settled or too old to count. Times
are trio's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from node.config import MarketSection
from node.ledger.standing import AGE_STEP_S, Standing
from protocol.exposure import ExposureRule
from protocol.units import MS_PER_S, MessageId, Microcredits, PeerId, UnixMs

PERMILLE_PER_PERCENT: Final = 10
_S_PER_DAY: Final = 24 * 3_600


def credit_rule(market: MarketSection) -> ExposureRule:
    """Return the rule for what peers may owe this node."""
    return ExposureRule(
        new_peer=market.credit_new_peer,
        peer_max=market.credit_peer_max,
        pool=market.credit_pool_new,
        earned_permille=market.earned_percent * PERMILLE_PER_PERCENT,
    )


def spend_rule(market: MarketSection) -> ExposureRule:
    """Return the rule for what this node puts at risk with providers."""
    return ExposureRule(
        new_peer=market.spend_new_peer,
        peer_max=market.spend_peer_max,
        pool=market.spend_pool_new,
        earned_permille=market.earned_percent * PERMILLE_PER_PERCENT,
    )


def forgive_s(market: MarketSection) -> float:
    """Return after how many seconds what is open counts no more."""
    return market.forgive_after_days * _S_PER_DAY if market.forgive_after_days else math.inf


@dataclass(slots=True)
class _Peer:
    reserved: int = 0
    owed: int = 0
    """All that was ever owed, settled or not, old or not."""
    paid: int = 0
    settled: int = 0
    recent: dict[int, int] = field(default_factory=dict)
    """Of ``owed``, what is young enough to count, by the hour in which its contract was made."""
    from_pool: int = 0

    @property
    def open(self) -> int:
        # A settlement covers the oldest debt first, so what is open is the youngest part of all that was owed.
        return min(max(self.owed - self.paid, 0), sum(self.recent.values()))

    @property
    def exposure(self) -> int:
        return self.open + self.reserved


@dataclass(frozen=True, slots=True)
class _Reserve:
    peer_id: PeerId
    amount: int


class Exposures:
    """Counts reserves and debts by peer. The caller asks ``room`` before it reserves."""

    def __init__(self, rule: ExposureRule, *, forgive_s: float = math.inf) -> None:
        self.rule = rule
        self._forgive_s = forgive_s
        self._peers: dict[PeerId, _Peer] = {}
        self._reserves: dict[MessageId, _Reserve] = {}
        self._pool_used = 0
        self._ages_at = math.inf
        """When the oldest debt that counts stops to."""

    def remember(self, standings: Mapping[PeerId, Standing], read_at_ms: UnixMs, *, now: float) -> None:
        """Take over from the ledger what was open at ``read_at_ms``, which is ``now``."""
        for peer_id, standing in standings.items():
            peer = self._peers.setdefault(peer_id, _Peer())
            peer.settled, peer.paid = standing.settled, standing.paid
            for at_ms, amount in standing.owed:
                self._owe(peer, amount, at=now - (read_at_ms - at_ms) / MS_PER_S)
            self._count(peer_id)
        self._forgive(now)

    def room(self, peer_id: PeerId, now: float) -> Microcredits:
        """Return the most that may be added to what is open with a peer."""
        self._forgive(now)
        peer = self._peers.get(peer_id, _Peer())
        return self.rule.room(exposure=peer.exposure, settled=peer.settled, pool_used=self._pool_used)

    def total(self, now: float) -> Microcredits:
        """Return what is open with all peers together."""
        self._forgive(now)
        return Microcredits(sum(peer.exposure for peer in self._peers.values()))

    def change_rule(self, rule: ExposureRule) -> None:
        """Count everything under another rule from now on; what is open stays open, also above a lower limit."""
        self.rule = rule
        for peer_id in list(self._peers):
            self._count(peer_id)

    def reserved(self, key: MessageId) -> int:
        return self._reserves[key].amount

    def reserve(self, key: MessageId, peer_id: PeerId, amount: int) -> None:
        """Count ``amount`` as open until ``release``; a second reserve under this key replaces the first."""
        self.release(key)
        self._reserves[key] = _Reserve(peer_id, amount)
        self._peers.setdefault(peer_id, _Peer()).reserved += amount
        self._count(peer_id)

    def release(self, key: MessageId) -> None:
        """Count a reserve no more, if there is one."""
        reserve = self._reserves.pop(key, None)
        if reserve is not None:
            # A reserve of nothing may be all there was, and then the peer is forgotten.
            self._peers.setdefault(reserve.peer_id, _Peer()).reserved -= reserve.amount
            self._count(reserve.peer_id)

    def owe(self, peer_id: PeerId, amount: int, *, at: float) -> None:
        """Count what a contract that was made at ``at`` left open."""
        self._owe(self._peers.setdefault(peer_id, _Peer()), amount, at=at)
        self._count(peer_id)

    def settled(self, peer_id: PeerId, total: int) -> None:
        """Note that a peer has settled so much in all; a lower total than before is an old message."""
        peer = self._peers.setdefault(peer_id, _Peer())
        peer.settled, peer.paid = max(peer.settled, total), max(peer.paid, total)
        self._count(peer_id)

    def earn(self, peer_id: PeerId, amount: int) -> None:
        """Note what came well of a contract that left nothing open."""
        self._peers.setdefault(peer_id, _Peer()).settled += amount
        self._count(peer_id)

    def describe(self, peer_id: PeerId, now: float) -> str:
        """Return what is open with a peer and where its limits are, in words."""
        self._forgive(now)
        peer = self._peers.get(peer_id, _Peer())
        said = f"{peer.open} µc are open and {peer.reserved} µc reserved of {self.rule.limit(peer.settled)} µc"
        if self.rule.pool - self._pool_used < self.rule.limit(peer.settled) - peer.exposure:
            said += f"; all peers together have {self._pool_used} of {self.rule.pool} µc"
        return said

    def _owe(self, peer: _Peer, amount: int, *, at: float) -> None:
        peer.owed += amount
        # All in one hour where nothing is ever forgiven: the hours of years would only add up again.
        hour = 0 if self._forgive_s == math.inf else math.floor(at / AGE_STEP_S)
        peer.recent[hour] = peer.recent.get(hour, 0) + amount
        self._ages_at = min(self._ages_at, self._counts_until(hour))

    def _counts_until(self, hour: int) -> float:
        return (hour + 1) * AGE_STEP_S + self._forgive_s

    def _forgive(self, now: float) -> None:
        if now < self._ages_at:
            return
        for peer_id in list(self._peers):
            recent = self._peers[peer_id].recent
            for hour in [hour for hour in recent if self._counts_until(hour) <= now]:
                del recent[hour]
            self._count(peer_id)
        hours = (hour for peer in self._peers.values() for hour in peer.recent)
        self._ages_at = min((self._counts_until(hour) for hour in hours), default=math.inf)

    def _count(self, peer_id: PeerId) -> None:
        peer = self._peers[peer_id]
        self._pool_used -= peer.from_pool
        peer.from_pool = self.rule.from_pool(peer.exposure, peer.settled)
        self._pool_used += peer.from_pool
        if not (peer.reserved or peer.owed or peer.settled):
            # A stranger that asked and left costs no memory.
            del self._peers[peer_id]
