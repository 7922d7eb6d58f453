"""A wire that loses packets, as streams over TCP see it: what was lost comes later, and what follows waits.

Gossip that is lost for good is ``Scenario.gossip_loss``; links that swallow everything: ``node.testnet.faults``.
"""

from typing import Final

from node.net.memory_link import IsCut, Wire
from protocol.units import PeerId

# The least that Linux waits before it sends a segment again; doubled each time.
RETRY_S: Final = 0.2


class LossyWire(Wire):
    """Each packet is lost with the same chance, however often it has been sent."""

    def __init__(self, seed: int, *, latency_s: tuple[float, float], is_cut: IsCut, loss: float) -> None:
        super().__init__(seed, latency_s=latency_s, is_cut=is_cut)
        self._loss = loss
        self.sent = 0
        """Packets, the repeated ones included."""
        self.lost = 0

    def arrival(self, source: PeerId) -> float:
        rng, wait_s, retry_s = self.rng(source), 0.0, RETRY_S
        self.sent += 1
        while rng.random() < self._loss:
            self.sent += 1
            self.lost += 1
            wait_s, retry_s = wait_s + retry_s, retry_s * 2
        return super().arrival(source) + wait_s
