"""Lets peers in or keeps them out: by the owner's policy, or by hand (``souk drain``). Jobs that run get a grace.

What the policy says is ``policy.py``'s. A closed gate declines quotes and contracts, withdraws the
advert and leaves this node's own orders alone.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import trio

from node.config import OwnerSection
from node.market.admission import Admission, Closed
from node.owner.policy import Reading, Verdict, is_idle_policy, judge, unread
from protocol.units import MS_PER_S

log = logging.getLogger(__name__)

OPEN: Final = Verdict(objections=(), disturbed_at=None)


class Seller(Protocol):
    """Whoever runs peers' jobs."""

    async def hand_back(self) -> int:
        """End every job of a peer so that it can go on elsewhere; return how many there were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateState:
    """What the owner is shown."""

    is_open: bool
    by_hand: bool
    """Closed with ``souk drain``; only ``souk resume`` opens it."""
    reasons: tuple[str, ...]
    opens_at: datetime | None
    """On the owner's clock; None when open, or when nobody knows."""
    unread: tuple[str, ...]
    """What the policy looks at and this machine does not tell."""
    hands_back_in_s: float | None
    """When jobs that still run are handed back; None: not before they end."""


class Gate:
    """Holds ``admission.closed``. Moved by ``run``, ``drain``, ``resume`` and ``obey``."""

    def __init__(
        self,
        admission: Admission,
        seller: Seller,
        owner: OwnerSection,
        *,
        read: Callable[[], Awaitable[Reading]],
        local_time: Callable[[], datetime],
        on_change: Callable[[], None],
    ) -> None:
        """``on_change`` is told whenever the gate opens or closes."""
        self._admission = admission
        self._seller = seller
        self._owner = owner
        self._read = read
        self._local_time = local_time
        self._on_change = on_change
        self._verdict = OPEN
        self._opens_at: datetime | None = None
        self._unread: tuple[str, ...] = ()
        self._is_drained = False
        # Of the drain and of the policy, each in trio's time: a drain without a grace takes none from the policy.
        self._drain_ends_at = math.inf
        self._policy_ends_at = math.inf
        self._poked = trio.Event()

    @property
    def _hand_back_at(self) -> float:
        return min(self._drain_ends_at, self._policy_ends_at)

    @property
    def state(self) -> GateState:
        reasons = tuple(objection.message for objection in self._verdict.objections)
        back = self._hand_back_at
        return GateState(
            is_open=self._admission.closed is None,
            by_hand=self._is_drained,
            reasons=("drained by hand (souk resume opens it)", *reasons) if self._is_drained else reasons,
            opens_at=None if self._is_drained else self._opens_at,
            unread=self._unread,
            hands_back_in_s=None if back == math.inf else max(back - trio.current_time(), 0.0),
        )

    def drain(self, grace_s: float | None) -> None:
        """Close until ``resume``; what still runs after ``grace_s`` is handed back, with None by policy alone."""
        self._is_drained = True
        self._drain_ends_at = math.inf if grace_s is None else trio.current_time() + grace_s
        self._close_or_open()
        self._poked.set()

    def resume(self) -> None:
        """Open again, unless the policy says otherwise."""
        self._is_drained = False
        self._drain_ends_at = math.inf
        self._close_or_open()
        self._poked.set()

    def obey(self, owner: OwnerSection) -> None:
        """Follow another policy from now on."""
        self._owner = owner
        self._poked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the policy until cancelled; started once it has been asked for the first time."""
        await self._look()
        task_status.started()
        while True:
            with trio.move_on_after(self._wait_s()):
                await self._poked.wait()
            self._poked = trio.Event()
            await self._look()
            if trio.current_time() >= self._hand_back_at and self._admission.running:
                count = await self._seller.hand_back()
                log.info("jobs handed back", extra={"jobs": count})

    def _wait_s(self) -> float:
        """Return until when nothing has to be looked at."""
        now = trio.current_time()
        look_s = math.inf if is_idle_policy(self._owner) else float(self._owner.check_every_s)
        back_s = self._hand_back_at - now
        # What was being accepted while the grace ran out is found at the next look.
        return min(look_s, back_s if back_s > 0 else self._owner.check_every_s)

    async def _look(self) -> None:
        owner = self._owner
        if is_idle_policy(owner):
            self._verdict, self._unread, self._opens_at = OPEN, (), None
        else:
            reading = await self._read()
            self._unread = unread(owner, reading)
            local, before = self._local_time(), self._verdict.disturbed_at
            self._verdict = judge(owner, reading, local=local, now=trio.current_time(), disturbed_at=before)
            opens_in_s = self._verdict.opens_in_s
            self._opens_at = None if opens_in_s is None else local + timedelta(seconds=opens_in_s)
        self._close_or_open()

    def _close_or_open(self) -> None:
        was_open = self._admission.closed is None
        self._admission.closed = self._closed()
        is_open = self._admission.closed is None
        if self._verdict.is_open:
            self._policy_ends_at = math.inf
        elif self._policy_ends_at == math.inf:
            self._policy_ends_at = trio.current_time() + self._owner.grace_s
        if is_open != was_open:
            reasons = [objection.code for objection in self._verdict.objections]
            log.info("open to peers" if is_open else "closed to peers", extra={"reasons": reasons})
            self._on_change()

    def _closed(self) -> Closed | None:
        if self._is_drained:
            return Closed(message="this node takes no new jobs: its owner drains it")
        if self._verdict.is_open:
            return None
        opens_in_s = self._verdict.opens_in_s
        retry_ms = None if opens_in_s is None else max(round(opens_in_s * MS_PER_S), 1)
        # The codes alone: what the owner does at the machine is nobody's business.
        codes = ", ".join(objection.code for objection in self._verdict.objections)
        return Closed(message=f"closed by its owner's policy now ({codes})", retry_after_ms=retry_ms)
