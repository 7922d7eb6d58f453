"""What goes wrong in a simulated world, and when: drawn from the seed, more severe than reality.

Faults come at random moments until ``run`` is over; then everything that was broken is mended.
"""

import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from node.testnet.liars import Lie
from node.testnet.orders import FIRST_ORDER_S
from node.testnet.world import LATENCY_S, SimulatedNode, World

SECONDS_PER_MINUTE: Final = 60.0
CLOCK_JUMP_S: Final = 300.0
VANISHES_AFTER_S: Final = (5.0, 40.0)
VANISH_STEP_S: Final = 0.25


class Faults:
    """Breaks the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.count: Counter[str] = Counter()
        """What was broken, by kind; a one-way partition is a partition, too."""
        self._gone: list[SimulatedNode] = []

    async def run(self, nursery: trio.Nursery) -> None:
        """Break things for the time that the scenario says, and mend them; ``nursery`` holds restarted nodes."""
        world, scenario = self._world, self._world.scenario
        rates = {
            "crash": (self._crash, scenario.crashes),
            "power-cut": (self._cut_power, scenario.power_cuts),
            "partition": (self._part, scenario.partitions),
            "glitch": (self._glitch, scenario.glitches),
            "reset": (self._reset, scenario.resets),
            "slow-disk": (self._slow_disk, scenario.slow_disks),
            "slow-links": (self._slow_links_down, scenario.slow_links),
            "worker-death": (self._kill_worker, scenario.worker_deaths),
            "worker-hang": (self._hang_worker, scenario.worker_hangs),
            "clock-jump": (self._jump_clock, scenario.clock_jumps),
        }
        with trio.move_on_at(scenario.faults_s):
            await trio.sleep_until(FIRST_ORDER_S)
            async with trio.open_nursery() as kinds:
                for kind, (fault, per_minute) in rates.items():
                    if per_minute:
                        kinds.start_soon(self._repeat, kind, fault, per_minute, nursery)
                for node in world.nodes:
                    if node.lie is Lie.VANISHES:
                        kinds.start_soon(self._vanish, node)
        for node in world.nodes:
            node.slow_down(False)
            if node.rooms is not None:
                node.rooms.workers.hangs = 0
        world.links.mend()
        world.fabric.wire.latency_s = LATENCY_S
        for node in world.nodes:
            if not node.is_up and node not in self._gone:
                nursery.start_soon(world.live, node)
        world.witness.note("world", "fault over", detail="all is mended")

    async def _repeat(
        self,
        kind: str,
        fault: Callable[[random.Random, trio.Nursery], Awaitable[None]],
        per_minute: float,
        nodes: trio.Nursery,
    ) -> None:
        # A generator for each fault: one that is left out changes nothing about the others.
        gaps = self._world.rng("faults", kind)
        async with trio.open_nursery() as under_way:
            for number in itertools.count():
                await trio.sleep(gaps.expovariate(per_minute / SECONDS_PER_MINUTE))
                if self._world.takes(f"{kind}/{number}"):
                    under_way.start_soon(fault, self._world.rng("faults", kind, number), nodes)

    def _note(self, what: str, detail: str) -> None:
        self._world.witness.note("world", f"fault {what}", detail=detail)

    def _node(self, rng: random.Random) -> SimulatedNode | None:
        """Draw a node that is up, and every other time one that is at work."""
        up = [node for node in self._world.nodes if node.is_up]
        busy = [node for node in up if node.rooms and (node.rooms.provider.jobs or node.rooms.requester.jobs)]
        if busy and rng.random() < 0.5:
            return rng.choice(busy)
        return rng.choice(up) if up else None

    # The faults. Each ends what it began unless the time for faults is over before.

    async def _crash(self, rng: random.Random, nodes: trio.Nursery, *, silently: bool = False) -> None:
        node = self._node(rng)
        if node is None:
            return
        self.count["power cut" if silently else "kill"] += 1
        self._world.crash(node, silently=silently)
        await trio.sleep(rng.uniform(*self._world.scenario.down_s))
        if silently:
            self._world.isolate(node, -1)
        nodes.start_soon(self._world.live, node)

    async def _cut_power(self, rng: random.Random, nodes: trio.Nursery) -> None:
        await self._crash(rng, nodes, silently=True)

    async def _vanish(self, node: SimulatedNode) -> None:
        """Cut a requester's power for good once a provider works for it."""
        rng = self._world.rng("faults", "vanish", node.name)
        await trio.sleep(rng.uniform(*VANISHES_AFTER_S))
        while not node.is_up or not self._world.is_served(node):  # noqa: ASYNC110  virtual time, no event tells
            await trio.sleep(VANISH_STEP_S)
        self._gone.append(node)
        self._world.crash(node, silently=True)

    async def _part(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        """Cut the nodes into two halves, in one direction only every third time."""
        nodes = self._world.nodes
        half = set(rng.sample(range(len(nodes)), rng.randint(1, len(nodes) // 2)))
        both_ways = rng.random() < 2 / 3
        links = [
            (one.peer_id, other.peer_id)
            for n, one in enumerate(nodes)
            for m, other in enumerate(nodes)
            if (n in half and m not in half) or (both_ways and m in half and n not in half)
        ]
        self.count["partition"] += 1
        self.count["one-way partition"] += not both_ways
        names = ",".join(nodes[n].name for n in sorted(half))
        self._note("partition", f"{names} {'from' if both_ways else 'to'} the others")
        for link in links:
            self._world.links.change(link, 1)
        await trio.sleep(rng.uniform(1.0, 25.0))
        for link in links:
            self._world.links.change(link, -1)
        self._note("partition over", names)

    async def _glitch(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        one, other = rng.sample(self._world.nodes, 2)
        self._note("glitch", f"{one.name} to {other.name}")
        self.count["glitch"] += 1
        self._world.links.change((one.peer_id, other.peer_id), 1)
        await trio.sleep(rng.uniform(0.05, 0.6))
        self._world.links.change((one.peer_id, other.peer_id), -1)

    async def _reset(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        """Break a stream in use, if there is one."""
        node = self._node(rng)
        streams = [] if node is None or node.rooms is None else node.rooms.network.streams
        if node is not None and streams:
            self.count["reset"] += 1
            self._note("reset", f"a stream of {node.name}")
            stream = rng.choice(streams)
            stream.abandon()
            await self._world.losses.watch(node.peer_id, stream)

    async def _slow_disk(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        node = rng.choice(self._world.nodes)
        self._note("slow disk", node.name)
        self.count["slow disk"] += 1
        node.slow_down(True)
        await trio.sleep(rng.uniform(2.0, 15.0))
        node.slow_down(False)

    async def _slow_links_down(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        self._note("slow links", "")
        self.count["slow links"] += 1
        wire = self._world.fabric.wire
        wire.latency_s = (0.1, rng.uniform(0.3, 3.0))
        self._world.links.change_speed(1)
        await trio.sleep(rng.uniform(2.0, 10.0))
        self._world.links.change_speed(-1)
        wire.latency_s = LATENCY_S

    async def _kill_worker(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        node = self._node(rng)
        if node is not None and node.rooms is not None and node.serves:
            self._note("worker dies", node.name)
            self.count["worker death"] += 1
            node.rooms.workers.die()
        await trio.lowlevel.checkpoint()

    async def _hang_worker(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        node = self._node(rng)
        if node is not None and node.rooms is not None and node.serves:
            self._note("worker hangs", node.name)
            self.count["worker hang"] += 1
            node.rooms.workers.hangs += 1
        await trio.lowlevel.checkpoint()

    async def _jump_clock(self, rng: random.Random, _nodes: trio.Nursery) -> None:
        node = rng.choice(self._world.nodes)
        jump_s = rng.uniform(-CLOCK_JUMP_S, CLOCK_JUMP_S)
        self._note("clock jumps", f"{node.name} by {jump_s:.0f} s")
        self.count["clock jump"] += 1
        node.clock.skew_s += jump_s
        try:
            await trio.sleep(rng.uniform(5.0, 30.0))
        finally:
            node.clock.skew_s -= jump_s
