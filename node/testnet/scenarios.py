"""What a simulated world is like: how many nodes, which faults and how often. One seed draws the rest."""

from dataclasses import dataclass
from typing import Final

from node.testnet.liars import Lie


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Rates are per virtual minute, over all nodes; 0 means never."""

    name: str
    providers: int = 3
    requesters: int = 3
    jobs: int = 20
    faults_s: float = 120.0
    """How long orders and faults come; then everything has to settle."""
    crashes: float = 0.0
    power_cuts: float = 0.0
    """Crashes of which no peer hears."""
    down_s: tuple[float, float] = (1.0, 20.0)
    partitions: float = 0.0
    glitches: float = 0.0
    """Links that swallow everything for part of a second: every busy stream on them goes silent."""
    resets: float = 0.0
    """Streams that break although both ends live."""
    slow_disks: float = 0.0
    slow_links: float = 0.0
    worker_deaths: float = 0.0
    worker_hangs: float = 0.0
    clock_jumps: float = 0.0
    skew_s: float = 25.0
    """Honest clocks are this far off at most: two of them within the minute that the protocol allows."""
    strangers: int = 0
    """Requesters and providers (one each per 2) whose clocks are up to five minutes off."""
    gossip_loss: float = 0.0
    """Gossip that never arrives."""
    packet_loss: float = 0.0
    """Packets of streams, dials and gossip that have to be sent again; see ``node.testnet.lossy_wire``."""
    deadline_s: tuple[float, float] = (15.0, 90.0)
    """Of orders that may fail."""
    slots: int = 4
    queue_max: int = 8
    lies: tuple[Lie, ...] = ()
    """One more node for each."""
    must_finish: bool = False
    """Whether every order has to be filled."""


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="calm", must_finish=True),
        Scenario(
            name="crashes",
            jobs=30,
            crashes=10,
            power_cuts=4,
            down_s=(1.0, 10.0),
            slow_disks=3,
            worker_deaths=4,
            worker_hangs=1,
            gossip_loss=0.02,
        ),
        Scenario(name="partitions", partitions=5, glitches=60, slow_links=4, slow_disks=2, gossip_loss=0.1),
        Scenario(
            name="churn",
            providers=4,
            requesters=4,
            jobs=30,
            crashes=12,
            power_cuts=4,
            down_s=(0.5, 8.0),
            partitions=3,
            glitches=20,
            slow_disks=4,
            slow_links=2,
            worker_deaths=4,
            worker_hangs=1,
            clock_jumps=1,
            strangers=2,
            gossip_loss=0.1,
        ),
        # Everything at once. Nobody waits longer than 45 s here, so that every order ends within a minute of the
        # last fault or hangs.
        Scenario(
            name="storm",
            providers=5,
            requesters=5,
            jobs=110,
            faults_s=180.0,
            crashes=14,
            power_cuts=4,
            down_s=(0.5, 6.0),
            partitions=5,
            glitches=15,
            resets=20,
            slow_disks=3,
            slow_links=1,
            worker_deaths=3,
            worker_hangs=1,
            clock_jumps=2,
            strangers=2,
            gossip_loss=0.02,
            packet_loss=0.02,
            deadline_s=(10.0, 45.0),
        ),
        Scenario(name="liars", lies=tuple(Lie), crashes=2, glitches=4, worker_deaths=1),
        Scenario(name="overload", jobs=60, slots=1, queue_max=1, faults_s=60.0, slow_disks=3),
    )
}
