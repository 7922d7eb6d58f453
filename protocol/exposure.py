"""How much may be open with one peer, and with all peers together (spec 05, section 7).

The rule alone: what is open, and for how long it counts, is counted in ``node/market/exposures.py``. Provider and
requester apply the same rule, each to what it stands to lose.
"""

from dataclasses import dataclass
from typing import Final

from protocol.errors import LocalProtocolError, Reason
from protocol.units import Microcredits

PERMILLE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureRule:
    """The limits of one node, in microcredits. Loss is at most ``pool`` and that share of all that was settled."""

    new_peer: int
    """What may be open with a peer that has settled nothing."""
    peer_max: int
    """What may be open with one peer, however much it has settled."""
    pool: int
    """What may be open with all peers together, beyond what each has earned."""
    earned_permille: int
    """Of each settled sum, what may be open beside: below 1 000, or a loss could eat more than ever came in."""

    def __post_init__(self) -> None:
        if min(self.new_peer, self.peer_max, self.pool) < 0 or not 0 <= self.earned_permille < PERMILLE:
            raise LocalProtocolError(
                f"exposure: expected sums from 0 and 0..{PERMILLE - 1} permille, got {self}", reason=Reason.MEANING
            )

    def earned(self, settled: int) -> Microcredits:
        """Return the share of what a peer settled that it may owe without using the pool."""
        return Microcredits(settled * self.earned_permille // PERMILLE)

    def limit(self, settled: int) -> Microcredits:
        """Return what may be open with a peer that has settled so much."""
        return Microcredits(min(self.peer_max, self.new_peer + self.earned(settled)))

    def from_pool(self, exposure: int, settled: int) -> Microcredits:
        """Return how much of an exposure the peer has not earned: the pool of all peers carries it."""
        return Microcredits(max(exposure - self.earned(settled), 0))

    def room(self, *, exposure: int, settled: int, pool_used: int) -> Microcredits:
        """Return the most that may be added to a peer's exposure.

        Args:
            exposure: what is open with the peer, reserves included.
            settled: all that it has ever settled.
            pool_used: the sum of ``from_pool`` over all peers, this one included.
        """
        own = self.limit(settled) - exposure
        # What a peer has earned and does not use takes nothing from the pool, even from one that is overdrawn.
        pool = max(self.pool - pool_used, 0) + max(self.earned(settled) - exposure, 0)
        return Microcredits(max(min(own, pool), 0))
