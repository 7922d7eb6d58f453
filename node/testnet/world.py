"""A simulated world: nodes made of the daemon's own rooms, on one in-memory network.

The wiring repeats ``node.daemon`` with other edges: memory for libp2p, a script for workers, virtual time for
disks and clocks. A crash is not a cancellation: network and disk are detached first, so that no ``finally``
block acts on the world after death.
"""

import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import trio

from node.config import Config, MarketSection, NodeSection
from node.discovery.directory import Directory
from node.discovery.discovery import Discovery
from node.errors import LedgerError
from node.keystore import Ed25519Signer
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.own_advert import OwnAdvert
from node.market.party import Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.market.settlement_exchange import Settler
from node.net.memory import MemoryFabric
from node.net.memory_link import address_of
from node.testnet.checks import Checks
from node.testnet.disk import DiskHandle, SimulatedDisk
from node.testnet.liars import PROVIDER_LIES, Lie, LyingParty
from node.testnet.links import NEVER, Links
from node.testnet.losses import Losses
from node.testnet.lossy_wire import LossyWire
from node.testnet.payments import PaidAtOnce
from node.testnet.replays import Replays
from node.testnet.scenarios import Scenario
from node.testnet.script import ScriptedWorkers
from node.testnet.witness import Life, WatchedNetwork, Witness
from protocol.envelope import network_id
from protocol.units import MS_PER_S, PeerId, UnixMs

EPOCH_MS: Final = 1_800_000_000_000
LATENCY_S: Final = (0.002, 0.04)
DRIFT: Final = 100e-6
"""Seconds per second that a cheap clock is wrong at most."""
STRANGER_SKEW_S: Final = 300.0
BOOTSTRAP_NODES: Final = 2
WORK_MAX: Final = 1024
UNBOUNDED: Final = 10**12
"""µc: more than all jobs of a world cost together."""
CREDIT: Final = 60_000
"""µc: less than an answer of the dearest provider may cost, so that it pauses for vouchers."""
SETTLING_PERIOD_S: Final = 5.0
NETWORK: Final = network_id({"name": "simulation"})


@dataclass
class Clock:
    """A wall clock that is off, and runs off."""

    skew_s: float
    drift: float

    def __call__(self) -> UnixMs:
        elapsed = trio.current_time() * (1 + self.drift) + self.skew_s
        return UnixMs(EPOCH_MS + round(elapsed * MS_PER_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The rooms of one incarnation."""

    life: Life
    party: Party
    network: WatchedNetwork
    disk: DiskHandle
    workers: ScriptedWorkers
    admission: Admission
    provider: Provider
    discovery: Discovery
    requester: Requester
    settler: Settler


Work: TypeAlias = Callable[[Rooms], Awaitable[None]]
"""What a user of a node does; it dies with the incarnation."""


@dataclass(kw_only=True)
class SimulatedNode:
    """A machine: what outlives its incarnations, and the one that runs now, if any."""

    name: str
    serves: bool
    signer: Ed25519Signer
    clock: Clock
    disk: SimulatedDisk
    config: Config
    lie: Lie | None = None
    is_stranger: bool = False
    lives: int = 0
    rooms: Rooms | None = None
    inbox: trio.MemorySendChannel[Work] | None = None
    """Takes work once the incarnation has started."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    task: trio.lowlevel.Task | None = None
    tasks_min: int = 1 << 30
    """The fewest tasks that this incarnation was seen with."""
    troubled_at: float = 0.0
    """When it was started, or its disk became slow or fast, the last time."""

    @property
    def peer_id(self) -> PeerId:
        return self.signer.peer_id

    @property
    def is_honest(self) -> bool:
        return self.lie is None

    @property
    def is_up(self) -> bool:
        return self.rooms is not None and self.rooms.life.alive

    @property
    def calm_since(self) -> float:
        """Since when it has been running without a fault of its own; infinity if it has one."""
        return self.troubled_at if self.is_up and not self.disk.slow else NEVER

    def slow_down(self, slow: bool) -> None:
        """Make its disk slow, or fast again."""
        self.disk.slow, self.troubled_at = slow, trio.current_time()

    def count_tasks(self) -> int:
        tasks, count = [self.task], 0
        while tasks:
            task = tasks.pop()
            if task is not None:
                count += 1
                tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        return count


class World:
    """All nodes, and what connects them."""

    def __init__(self, scenario: Scenario, seed: int, only: frozenset[str] | None = None) -> None:
        """``only`` names the orders and faults that the run consists of; None takes all that the seed draws."""
        self.scenario = scenario
        self.seed = seed
        self._only = only
        self.items: list[str] = []
        """The orders and faults that there were."""
        self.over = trio.Event()
        """Set at the first violation: what follows it explains nothing."""
        self.witness = Witness()
        self.losses = Losses(self)
        self.checks = Checks(self.witness, on_violation=self.over.set, is_held=self.losses.is_held)
        self.witness.observer = self.checks
        self.links = Links()
        self.fabric = MemoryFabric(
            seed,
            latency_s=LATENCY_S,
            gossip_loss=scenario.gossip_loss,
            is_cut=self.links.is_cut,
        )
        if scenario.packet_loss:
            self.fabric.wire = LossyWire(
                seed, latency_s=LATENCY_S, is_cut=self.fabric.wire.is_cut, loss=scenario.packet_loss
            )
        self.nodes = [self._make_node(*kind) for kind in _kinds(scenario)]
        self._by_peer = {node.peer_id: node for node in self.nodes}

    def rng(self, *names: object) -> random.Random:
        """Return a generator of its own for each purpose: one draw more does not change the others."""
        return random.Random("/".join(map(str, (self.seed, *names))))

    def node_of(self, peer_id: PeerId) -> SimulatedNode:
        return self._by_peer[peer_id]

    def is_served(self, node: SimulatedNode) -> bool:
        """Return whether a provider holds a job of this node's."""
        jobs = [job for other in self.nodes if other.rooms for job in other.rooms.provider.jobs.values()]
        return any(job.contract.signer == node.peer_id for job in jobs)

    def takes(self, item: str) -> bool:
        """Return whether this order or fault belongs to the run, and note it."""
        if self._only is not None and item not in self._only:
            return False
        self.items.append(item)
        return True

    def _make_node(self, name: str, serves: bool, lie: Lie | None, is_stranger: bool) -> SimulatedNode:
        rng, scenario = self.rng(name), self.scenario
        skew_s = STRANGER_SKEW_S if is_stranger else scenario.skew_s
        signer = Ed25519Signer(rng.randbytes(32))
        if lie is not None:
            self.checks.liars.add(signer.peer_id)
        return SimulatedNode(
            name=name,
            serves=serves,
            signer=signer,
            clock=Clock(rng.uniform(-skew_s, skew_s), rng.uniform(-DRIFT, DRIFT)),
            disk=SimulatedDisk(lambda raw: self.checks.became_durable(signer.peer_id, raw)),
            config=Config(
                node=NodeSection(name=name, role="worker" if serves else "client"),
                market=MarketSection(
                    price_fixed=rng.choice((0, 0, 100)),
                    price_in=rng.choice((0, 200_000)),
                    price_out=rng.choice((800_000, 50_000_000, 200_000_000)),
                    price_per_s=rng.choice((0, 0, 7)),
                    # What bounds the loss has a test of its own.
                    credit_new_peer=CREDIT,
                    credit_peer_max=CREDIT,
                    credit_pool_new=UNBOUNDED,
                    spend_new_peer=UNBOUNDED,
                    spend_peer_max=UNBOUNDED,
                    spend_pool_new=UNBOUNDED,
                    voucher_window_tokens=rng.choice((8, 32, 48)),
                    queue_max=scenario.queue_max,
                ),
            ),
            lie=lie,
            is_stranger=is_stranger,
        )

    # The life of a node.

    async def live(self, node: SimulatedNode) -> None:
        """Run one incarnation until its machine crashes or the world ends."""
        node.lives += 1
        node.troubled_at = trio.current_time()
        rooms = self._make_rooms(node)
        inbox, works = trio.open_memory_channel[Work](WORK_MAX)
        node.rooms, node.task = rooms, trio.lowlevel.current_task()
        node.tasks_min = 1 << 30
        try:
            with trio.CancelScope() as node.scope:
                async with trio.open_nursery() as nursery:
                    await self._start(node, rooms, nursery)
                    self.witness.note(node.name, "is up", detail=f"life {node.lives}")
                    node.inbox = inbox
                    if node.lie is Lie.REPLAYS:
                        nursery.start_soon(self._replays(node).run, rooms)
                    async for work in works:
                        nursery.start_soon(work, rooms)
        except* LedgerError as group:
            # The ledger of a crashed machine ends in an error, as its disk is gone.
            self._unless_dead(rooms.life, group)
        except* Exception as group:  # a bug of the node: the run ends with its history
            self._unless_dead(rooms.life, group)

    def _replays(self, node: SimulatedNode) -> Replays:
        return Replays(self.witness, self.rng(node.name, node.lives, "replays"), ends_at=self.scenario.faults_s)

    def _unless_dead(self, life: Life, group: BaseExceptionGroup[BaseException]) -> None:
        if life.alive or not isinstance(group, ExceptionGroup) or group.split(LedgerError)[1] is not None:
            self.checks.fail("a node ended by itself", "".join(traceback.format_exception(group)))

    def crash(self, node: SimulatedNode, *, silently: bool = False) -> None:
        """End an incarnation as a kill does; ``silently`` as a power cut does: no peer hears of it."""
        assert node.rooms is not None
        self.witness.note(node.name, "fault crash", detail="power cut" if silently else "")
        if silently:
            self.isolate(node, 1)
        self.fabric.crash(node.name)
        node.rooms.life.alive = False
        node.rooms.disk.detach()
        node.scope.cancel()
        node.rooms = node.inbox = None

    def isolate(self, node: SimulatedNode, change: int) -> None:
        """Cut (1) or mend (-1) every link of a node."""
        for other in self.nodes:
            self.links.change((node.peer_id, other.peer_id), change)
            self.links.change((other.peer_id, node.peer_id), change)

    def _make_rooms(self, node: SimulatedNode) -> Rooms:
        life = Life(node.name, node.lives, node.peer_id)
        rng = self.rng(node.name, node.lives)
        disk = DiskHandle(node.disk, self.rng(node.name, node.lives, "disk"))
        party = self._make_party(node, disk, rng)
        network = WatchedNetwork(self.fabric, life, self.witness)
        workers = ScriptedWorkers(
            self.rng(node.name, node.lives, "workers"),
            slots=self.scenario.slots,
            serves=node.serves,
            on_start=lambda key, allowed: self.checks.started(node.peer_id, key, allowed) if life.alive else None,
            on_token=self.checks.made,
            on_held=lambda held: self._check_held(node, life, held),
        )
        market = node.config.market
        admission = Admission(market)
        discovery: Discovery
        provider = Provider(party, workers, admission, config=market, on_change=lambda: discovery.changed())
        advert = OwnAdvert(party, provider, workers, admission, network=network, config=node.config)
        directory = Directory(NETWORK, node.peer_id)
        discovery = Discovery(
            network, directory, network_id=NETWORK, compose=advert.compose, wall_clock=node.clock
        )
        requester = Requester(party, network, directory, workers, config=market, look_up=discovery.look_up)
        settler = Settler(party, network, PaidAtOnce(), every_s=SETTLING_PERIOD_S, on_settled=admission.settled)
        return Rooms(
            life=life,
            party=party,
            network=network,
            disk=disk,
            workers=workers,
            admission=admission,
            provider=provider,
            discovery=discovery,
            requester=requester,
            settler=settler,
        )

    def _check_held(self, node: SimulatedNode, life: Life, held: int) -> None:
        places = self.scenario.slots + node.config.market.queue_max
        if life.alive and held > places:
            self.checks.fail("more jobs taken than there are places", f"{node.name} holds {held}, has {places}")

    def _make_party(self, node: SimulatedNode, disk: DiskHandle, rng: random.Random) -> Party:
        ledger = Ledger(Path(f"{node.name}.db"), disk)
        if node.lie is None:
            return Party(
                signer=node.signer, network=NETWORK, ledger=ledger, wall_clock=node.clock, entropy=rng.randbytes
            )
        return LyingParty(
            signer=node.signer,
            network=NETWORK,
            ledger=ledger,
            wall_clock=node.clock,
            entropy=rng.randbytes,
            lie=node.lie,
            rng=self.rng(node.name, node.lives, "lies"),
        )

    async def _start(self, node: SimulatedNode, rooms: Rooms, nursery: trio.Nursery) -> None:
        """Start the rooms in the daemon's order."""
        await nursery.start(rooms.party.ledger.run)
        standings = await rooms.party.ledger.standings(
            rooms.party.now_ms(), forgive_after_days=node.config.market.forgive_after_days
        )
        rooms.admission.remember(standings, now=trio.current_time())
        rooms.requester.spending.remember(standings)
        rooms.discovery.attach()
        rooms.provider.attach(rooms.network)
        rooms.settler.attach()
        await nursery.start(rooms.network.run)
        bootstrap = tuple(
            address_of(other.name, other.peer_id) for other in self.nodes[:BOOTSTRAP_NODES] if other is not node
        )
        await nursery.start(rooms.discovery.run, bootstrap)
        nursery.start_soon(rooms.requester.run)
        nursery.start_soon(rooms.settler.run)
        rooms.admission.slots = self.scenario.slots if node.serves else 0
        rooms.admission.queue_max = node.config.market.queue_max if node.serves else 0
        rooms.discovery.changed()


def _kinds(scenario: Scenario) -> list[tuple[str, bool, Lie | None, bool]]:
    """Return (name, serves, lie, is a stranger) of every node; honest providers first."""
    kinds: list[tuple[str, bool, Lie | None, bool]] = []
    kinds += [(f"p{n}", True, None, False) for n in range(scenario.providers)]
    kinds += [(f"r{n}", False, None, False) for n in range(scenario.requesters)]
    kinds += [(f"s{n}", n % 2 == 1, None, True) for n in range(scenario.strangers)]
    kinds += [(f"l{n}", lie in PROVIDER_LIES, lie, False) for n, lie in enumerate(scenario.lies)]
    return kinds
