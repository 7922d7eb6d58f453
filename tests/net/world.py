"""Where conformance tests put their nodes: one small world for each implementation of ``Network``."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from node.net.interface import Network, PeerAddresses, Stream
from node.net.libp2p import LibP2pNetwork
from node.net.memory import MemoryFabric
from protocol.identity import peer_id_to_text
from protocol.units import NetworkId, PeerId

ECHO = "/souk/test/echo/1"
NETWORK = NetworkId(bytes(32))
WAIT_S = 20.0
"""For real sockets on a busy machine; virtual time jumps over it."""


class World(Protocol):
    """Makes nodes; ``start`` runs them until ``stop`` or the end of the test."""

    def make(self) -> Network: ...

    def make_stranger(self) -> Network:
        """Make a node of a network of its own; gossip topics and protocols are the caller's in any case."""

    def make_at(self, taken: str) -> Network:
        """Make a node that wants to listen where ``taken`` is listened on."""

    def dead_address(self, peer_id: PeerId) -> str: ...

    async def start(self, *networks: Network) -> None: ...

    async def stop(self, network: Network) -> None: ...

    async def mesh(self) -> None:
        """Wait until gossip has had time to find its ways."""


class _Runs:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.scopes: dict[int, tuple[trio.CancelScope, trio.Event]] = {}
        self.made = 0

    async def start(self, *networks: Network) -> None:
        for network in networks:
            await self.nursery.start(self._run, network)

    async def stop(self, network: Network) -> None:
        scope, done = self.scopes.pop(id(network))
        scope.cancel()
        await done.wait()

    async def _run(self, network: Network, *, task_status: trio.TaskStatus[None]) -> None:
        done = trio.Event()
        try:
            with trio.CancelScope() as scope:
                self.scopes[id(network)] = scope, done
                await network.run(task_status=task_status)
        finally:
            done.set()

    def seed(self) -> bytes:
        self.made += 1
        return self.made.to_bytes(32, "big")


class LibP2pWorld(_Runs):
    def make(self) -> LibP2pNetwork:
        return LibP2pNetwork(self.seed(), listen=("/ip4/127.0.0.1/tcp/0",), network=NETWORK)

    def make_stranger(self) -> LibP2pNetwork:
        seed = self.seed()
        return LibP2pNetwork(seed, listen=("/ip4/127.0.0.1/tcp/0",), network=NetworkId(seed[::-1]))

    def make_at(self, taken: str) -> LibP2pNetwork:
        return LibP2pNetwork(self.seed(), listen=(taken.partition("/p2p/")[0],), network=NETWORK)

    def dead_address(self, peer_id: PeerId) -> str:
        return f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id_to_text(peer_id)}"

    async def mesh(self) -> None:
        await trio.sleep(2.5)  # two heartbeats of gossipsub


class MemoryWorld(_Runs):
    def __init__(self, nursery: trio.Nursery, fabric: MemoryFabric) -> None:
        super().__init__(nursery)
        self.fabric = fabric

    def make(self) -> Network:
        peer_id = LibP2pNetwork(self.seed(), listen=(), network=NETWORK).peer_id
        return self.fabric.network(f"host{self.made}", peer_id)

    def make_stranger(self) -> Network:
        return self.make()

    def make_at(self, taken: str) -> Network:
        return self.fabric.network(taken.split("/")[2], self.make().peer_id)

    def dead_address(self, peer_id: PeerId) -> str:
        return f"/memory/nobody/p2p/{peer_id_to_text(peer_id)}"

    async def mesh(self) -> None:
        await trio.sleep(1)


async def echo(stream: Stream) -> None:
    while (frame := await stream.receive_frame(1 << 20)) is not None:
        await stream.send_frame(frame)
    await stream.finish()


N = TypeVar("N", bound=Network, covariant=True)


class Maker(Protocol[N]):
    """The part of a world that knows what kind of node it makes."""

    def make(self) -> N: ...

    async def start(self, *networks: Network) -> None: ...


async def make_pair(world: Maker[N]) -> tuple[N, N]:
    """Start two nodes that serve ECHO, the first connected to the second."""
    one, two = world.make(), world.make()
    for network in (one, two):
        network.serve(ECHO, echo)
    await world.start(one, two)
    await one.dial(two.addresses[0])
    return one, two


async def check_echo(network: Network, peer_id: PeerId, frame: bytes = b"ping") -> None:
    with trio.fail_after(WAIT_S):
        async with await network.open_stream(peer_id, ECHO) as stream:
            await stream.send_frame(frame)
            assert await stream.receive_frame(1 << 20) == frame
            await stream.finish()
            assert await stream.receive_frame(0) is None


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another node does in its own time."""
    with trio.fail_after(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what is waited for is in another node, and tells nobody)
            await trio.sleep(0.01)


def where(network: Network) -> PeerAddresses:
    return PeerAddresses(peer_id=network.peer_id, addresses=network.addresses)


def count_tasks() -> int:
    """Count every task of this run, system tasks of libraries as well."""
    tasks = [trio.lowlevel.current_root_task()]
    count = 0
    while tasks:
        task = tasks.pop()
        if task is None:
            continue
        count += 1
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return count
