"""Which links between simulated nodes are cut or slow now, and since when each has been in order."""

import math
from collections import Counter
from typing import Final, TypeAlias

import trio

from protocol.units import PeerId

Link: TypeAlias = tuple[PeerId, PeerId]
"""From one to the other: each direction is a link of its own."""

NEVER: Final = math.inf


class Links:
    """Faults overlap: a link is cut as long as anybody cuts it."""

    def __init__(self) -> None:
        self._cuts: Counter[Link] = Counter()
        self._changed_at: dict[Link, float] = {}
        self._slow = 0
        self._slow_until = 0.0

    def is_cut(self, source: PeerId, target: PeerId) -> bool:
        return self._cuts[source, target] > 0

    def change(self, link: Link, cuts: int) -> None:
        """Cut a link once more (1) or once less (-1)."""
        self._cuts[link] += cuts
        self._changed_at[link] = trio.current_time()

    def change_speed(self, slow: int) -> None:
        """Note that all links are slow once more (1) or once less (-1)."""
        self._slow += slow
        self._slow_until = trio.current_time()

    def mend(self) -> None:
        """End every cut and every slowness."""
        for link in [link for link, cuts in self._cuts.items() if cuts]:
            self.change(link, -self._cuts[link])
        self.change_speed(-self._slow)

    def whole_since(self, one: PeerId, other: PeerId) -> float:
        """Return since when packets between two nodes have come and gone in time; infinity if they do not."""
        both = (one, other), (other, one)
        if self._slow or any(self.is_cut(*link) for link in both):
            return NEVER
        return max(self._slow_until, *(self._changed_at.get(link, 0.0) for link in both))
