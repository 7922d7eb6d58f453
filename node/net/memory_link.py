"""What the in-memory network is made of: one heap for everything that travels, and the streams on it.

One dispatcher task and one heap carry every packet of every node: two pump tasks for each stream ran a thousand
nodes at 0.2 times real time, one heap at five times. Nodes and gossip live in ``node.net.memory``.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Final, Self

import trio

from node.errors import StreamLostError
from node.net import limits
from protocol.errors import Reason, RemoteProtocolError
from protocol.identity import peer_id_to_text
from protocol.units import PeerId

# Delivery times are rounded up to this grid: fewer wake-ups, and the same packets arrive together.
GRID_S: Final = 0.001
# As on the wire, a frame costs its length prefix: empty ones are not free.
FRAME_COST_BYTES: Final = 4

Link = tuple[PeerId, PeerId]
IsCut = Callable[[PeerId, PeerId], bool]


class Wire:
    """Carries packets from peer to peer, each at its time; deterministic for a seed and a schedule."""

    def __init__(self, seed: int, *, latency_s: tuple[float, float], is_cut: IsCut) -> None:
        self._seed = seed
        self.latency_s = latency_s
        self.is_cut = is_cut
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._kick = trio.Event()
        self._rngs: dict[PeerId, random.Random] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        task_status.started()
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2]()
            self._kick = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._kick.wait()

    def at(self, when: float, deliver: Callable[[], None]) -> None:
        """Call ``deliver`` at ``when``, in the order of these calls if several share a time."""
        heapq.heappush(self._heap, (when, next(self._order), deliver))
        if self._heap[0][0] >= when:
            self._kick.set()

    def arrival(self, source: PeerId) -> float:
        """Draw when a packet that ``source`` sends now arrives."""
        due = trio.current_time() + self.rng(source).uniform(*self.latency_s)
        return (int(due / GRID_S) + 1) * GRID_S

    def rng(self, source: PeerId) -> random.Random:
        """Return the node's own generator: one node more does not reshuffle the others."""
        if source not in self._rngs:
            self._rngs[source] = random.Random(f"{self._seed}/{source.hex()}")  # noqa: S311 (a simulation)
        return self._rngs[source]

    def post(self, source: PeerId, target: PeerId, deliver: Callable[[], None]) -> None:
        """Send one packet that a cut link swallows, at its start or at its end."""
        if self.is_cut(source, target):
            return
        self.at(self.arrival(source), lambda: None if self.is_cut(source, target) else deliver())


class _Pipe:
    """One direction of a stream: in order, and dead for good once a cut has swallowed anything.

    TCP would retransmit after the link heals; here retransmission has given up. Nothing tells the ends: only
    deadlines notice.
    """

    def __init__(self, wire: Wire, source: PeerId, target: PeerId) -> None:
        self._wire = wire
        self._link = (source, target)
        self._last = 0.0
        self._dead = False

    def send(self, deliver: Callable[[], None]) -> None:
        self._dead = self._dead or self._wire.is_cut(*self._link)
        if self._dead:
            return
        self._last = max(self._last, self._wire.arrival(self._link[0]))
        self._wire.at(self._last, lambda: self._arrive(deliver))

    def _arrive(self, deliver: Callable[[], None]) -> None:
        self._dead = self._dead or self._wire.is_cut(*self._link)
        if not self._dead:
            deliver()


class MemoryStream:
    """Implements ``node.net.interface.Stream``: one end; ``connect_ends`` makes two."""

    def __init__(
        self, wire: Wire, *, own: PeerId, peer_id: PeerId, on_gone: Callable[["MemoryStream"], None]
    ) -> None:
        """``on_gone`` hears once that nothing can arrive or leave any more."""
        self._wire = wire
        self._peer_id = peer_id
        self._pipe = _Pipe(wire, own, peer_id)
        self._on_gone = on_gone
        self._other: MemoryStream | None = None
        self._inbox: deque[bytes | None] = deque()
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._unacknowledged = 0
        self._credit = 0
        self._finished = self._ended = self._left = self._lost = self._gone = False
        self._writing = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def is_lost(self) -> bool:
        return self._lost

    async def send_frame(self, frame: bytes) -> None:
        assert not self._finished, "a finished stream takes no more frames"
        await self._send(frame)

    async def receive_frame(self, size_max: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._ended:
                return None
            if self._lost:
                raise self._loss()
            self._readable = trio.Event()
            await self._readable.wait()
        frame = self._inbox[0]
        if frame is not None and len(frame) > size_max:
            await self.reset()
            raise RemoteProtocolError(f"a frame of {len(frame)} bytes, above {size_max}", reason=Reason.SIZE)
        self._inbox.popleft()
        if frame is None:
            self._ended = True
            self._check_gone()
        else:
            self._acknowledge(frame)
        return frame

    async def finish(self) -> None:
        if not self._finished:
            await self._send(None)
            self._finished = True
            self._check_gone()

    async def reset(self) -> None:
        self.abandon()
        self._inbox.clear()

    def abandon(self) -> None:
        """Lose the stream and tell the peer, if the link lets it through; synchronous, for dying nodes."""
        if not self._gone and self._other is not None:
            self._pipe.send(self._other.lose)
        self.lose()

    def lose(self) -> None:
        """Hear that the stream is lost; frames that have arrived can still be read."""
        self._lost = True
        self._wake()
        self._go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None or not self._finished or self._lost or self._writing:
            await self.reset()
        elif not self._ended:
            self._left = True
            while self._inbox:
                self._discard(self._inbox.popleft())
            self._wire.at(trio.current_time() + limits.LINGER_S, self._stop_lingering)

    async def _send(self, frame: bytes | None) -> None:
        await trio.lowlevel.checkpoint()
        if self._writing:
            raise self._loss()
        # As on the wire: a send cancelled in the middle leaves the stream unusable.
        self._writing = True
        while self._unacknowledged >= limits.STREAM_WINDOW_BYTES and not self._lost:
            self._writable = trio.Event()
            await self._writable.wait()
        if self._lost:
            raise self._loss()
        self._writing = False
        self._unacknowledged += _cost(frame)
        other = self._other
        assert other is not None
        self._pipe.send(lambda: other._deliver(frame))

    def _deliver(self, frame: bytes | None) -> None:
        if self._left:
            self._discard(frame)
        elif not self._lost:
            self._inbox.append(frame)
            self._readable.set()

    def _discard(self, frame: bytes | None) -> None:
        if frame is None:
            self._ended = True
            self._check_gone()
        else:
            self._acknowledge(frame)

    def _acknowledge(self, frame: bytes) -> None:
        """Give credit back, in quarters of the window."""
        self._credit += _cost(frame)
        if self._credit < limits.STREAM_WINDOW_BYTES // 4 or self._other is None:
            return
        credit, self._credit = self._credit, 0
        other = self._other
        self._pipe.send(lambda: other._take_credit(credit))

    def _take_credit(self, credit: int) -> None:
        self._unacknowledged -= credit
        self._writable.set()

    def _stop_lingering(self) -> None:
        if not self._ended:
            self.abandon()

    def _check_gone(self) -> None:
        if self._finished and self._ended:
            self._go()

    def _go(self) -> None:
        if not self._gone:
            self._gone = True
            self._on_gone(self)

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()

    def _loss(self) -> StreamLostError:
        return StreamLostError(f"the stream to {peer_id_to_text(self._peer_id)} broke before its end frame")


def connect_ends(one: MemoryStream, other: MemoryStream) -> None:
    """Make two ends one stream."""
    one._other, other._other = other, one


def _cost(frame: bytes | None) -> int:
    return FRAME_COST_BYTES + len(frame or b"")


def address_of(name: str, peer_id: PeerId) -> str:
    return f"/memory/{name}/p2p/{peer_id_to_text(peer_id)}"
