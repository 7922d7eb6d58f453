"""Where market tests put their nodes: the real market over the in-memory network, real ledgers, virtual time.

Every stream is watched: a signed message that leaves before its ledger has it is a fault of the node, whatever
the test is about.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import trio

from node.bans import BanList
from node.config import Config, MarketSection, NodeSection
from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife
from node.errors import LedgerError
from node.ledger.audit import audit
from node.ledger.entries import ContractRow, Entry, StoredMessage
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.order import Finished, JobEvent, Order, Output
from node.market.own_advert import OwnAdvert
from node.market.party import Line, Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.market.settlement import means_of
from node.market.settlement_exchange import Settler
from node.net.interface import PeerAddresses, Stream, StreamHandler
from node.net.memory import MemoryFabric, MemoryNetwork
from protocol.framing import JOB_PROTOCOL, EnvelopeFrame, decode_frame_untrusted
from protocol.messages import MESSAGE_TYPES
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.states import is_final
from protocol.task import GenerateInput, Sampling
from protocol.units import MS_PER_S, Microcredits, NetworkId, PeerId, UnixMs
from tests.fakes import EPOCH_MS, CountedEntropy, ScriptedExecutor, signer_of

NETWORK = NetworkId(b"n" * 32)
NEVER_STORED = ("decline", "resume", "tally")
SETTLED_S = 90.0
"""Longer than every timer that a conversation leaves behind."""

T = TypeVar("T")


class InlineLedger(Ledger):
    """The real ledger without its thread: virtual time does not wait for threads.

    ``lag_s`` is what each call takes; ``broken`` makes every posting fail, as a full disk does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lag_s = 0.0
        self.broken = False

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        await trio.sleep(self.lag_s)
        return call(*args)

    async def post(
        self, *entries: Entry, row: ContractRow | None = None, is_new: bool = False, fingerprint: bytes = b""
    ) -> None:
        if self.broken:
            raise LedgerError("the disk is full")
        await super().post(*entries, row=row, is_new=is_new, fingerprint=fingerprint)

    def has(self, message_id: bytes) -> bool:
        found = self._store.db.execute("SELECT 1 FROM entry WHERE message_id = ?", (message_id,))
        return found.fetchone() is not None


@dataclass
class WatchedStream:
    """A stream that tells what leaves on it; the market sees no difference."""

    inner: Stream
    watch: Callable[[bytes], None]

    @property
    def peer_id(self) -> PeerId:
        return self.inner.peer_id

    async def send_frame(self, frame: bytes) -> None:
        self.watch(frame)
        await self.inner.send_frame(frame)

    async def receive_frame(self, size_max: int) -> bytes | None:
        return await self.inner.receive_frame(size_max)

    async def finish(self) -> None:
        await self.inner.finish()

    async def reset(self) -> None:
        await self.inner.reset()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.inner.__aexit__(*exc_info)


class WatchedNetwork:
    """The in-memory network with every stream watched."""

    def __init__(self, inner: MemoryNetwork, watch: Callable[[bytes], None]) -> None:
        self.inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:  # everything but streams is the inner network's
        return getattr(self.inner, name)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def watched(stream: Stream) -> None:
            await handler(WatchedStream(stream, self._watch))

        self.inner.serve(protocol, watched)

    async def open_stream(self, peer_id: PeerId, protocol: str) -> WatchedStream:
        return WatchedStream(await self.inner.open_stream(peer_id, protocol), self._watch)


@dataclass
class Node:
    """One node without its daemon."""

    market: MarketSection
    party: Party
    ledger: InlineLedger
    network: WatchedNetwork
    directory: Directory
    executor: ScriptedExecutor
    admission: Admission
    provider: Provider
    requester: Requester
    settler: Settler
    own_advert: OwnAdvert
    bans: BanList
    sent: list[tuple[float, Signed[SignedMessage] | bytes]] = field(default_factory=list)
    """What left, and when: signed messages, and the bytes of other frames."""
    changes: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def peer_id(self) -> PeerId:
        return self.party.peer_id

    def sent_kinds(self) -> list[str]:
        return [it.envelope.kind for _at, it in self.sent if isinstance(it, Signed)]

    async def only_row(self) -> ContractRow:
        (row,) = await self.ledger.contracts(10)
        return row

    async def kinds(self, row: ContractRow) -> list[str]:
        return [it.kind for it in await self.messages(row)]

    async def messages(self, row: ContractRow) -> list[StoredMessage]:
        found = await self.ledger.messages(row.contract_id.hex())
        assert found is not None
        return found[1]


@dataclass
class Bought:
    """How an order went."""

    events: list[JobEvent]
    error: Exception | None
    took_s: float

    @property
    def finished(self) -> Finished:
        assert self.error is None, self.error
        (last,) = [event for event in self.events if isinstance(event, Finished)]
        assert self.events[-1] is last
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Output))


class World:
    """Makes nodes and looks after what they leave behind."""

    def __init__(self, nursery: trio.Nursery, fabric: MemoryFabric, folder: Path) -> None:
        self.nursery = nursery
        self.fabric = fabric
        self.folder = folder
        self.nodes: list[Node] = []
        self.faults: list[str] = []

    async def node(
        self,
        name: str,
        *,
        executor: ScriptedExecutor | None = None,
        market: MarketSection | None = None,
        skew_ms: int = 0,
        rogue: Callable[["Node", Line], Awaitable[None]] | None = None,
    ) -> Node:
        """Start a node. Without an executor it only buys; ``rogue`` serves jobs in place of our provider."""
        signer, config = signer_of(name), Config(market=market or MarketSection(), node=NodeSection(name=name))
        ledger = InlineLedger(self.folder / f"{name}.db")
        party = Party(
            signer=signer,
            network=NETWORK,
            ledger=ledger,
            wall_clock=lambda: UnixMs(EPOCH_MS + skew_ms + round(trio.current_time() * MS_PER_S)),
            entropy=CountedEntropy(name),
        )
        inner = self.fabric.network(name, signer.peer_id)
        network = WatchedNetwork(inner, lambda frame: self._watch(node, frame))
        executor = executor or ScriptedExecutor(served=())
        bans = BanList()
        network.refuse(bans.__contains__)
        admission = Admission(config.market, banned=bans)
        provider = Provider(
            party, executor, admission, config=config.market, on_change=lambda: self._count_change(node)
        )
        directory = Directory(NETWORK, signer.peer_id, banned=bans)
        settler = Settler(party, network, means_of(config.market), every_s=0, on_settled=admission.settled)
        settler.attach()
        node = Node(
            market=config.market,
            party=party,
            ledger=ledger,
            network=network,
            directory=directory,
            executor=executor,
            admission=admission,
            provider=provider,
            requester=Requester(party, network, directory, executor, config=config.market, look_up=self._look_up),
            settler=settler,
            bans=bans,
            own_advert=OwnAdvert(party, provider, executor, admission, network=network, config=config),
        )
        if executor.served:
            admission.slots, admission.queue_max = executor.slots, config.market.queue_max
        if rogue is None:
            provider.attach(network)
        else:
            inner.serve(JOB_PROTOCOL, lambda stream: rogue(node, Line(stream, party)))
        await self.nursery.start(self._run, node)
        self.nodes.append(node)
        return node

    async def _run(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.ledger.run)
                standings = await node.ledger.standings(
                    node.party.now_ms(), forgive_after_days=node.market.forgive_after_days
                )
                node.admission.remember(standings, now=trio.current_time())
                node.requester.spending.remember(standings)
                await nursery.start(node.network.inner.run)
                nursery.start_soon(node.requester.run)
                task_status.started()

    async def stop(self, node: Node) -> None:
        """Stop a node; another one may then start under its name."""
        node.scope.cancel()
        # Peers hear of it, and hang up.
        await trio.sleep(1)
        self.nodes.remove(node)

    @staticmethod
    def _count_change(node: Node) -> None:
        node.changes += 1

    @staticmethod
    async def _look_up(_model: str) -> int:
        return 0

    def _watch(self, node: Node, frame: bytes) -> None:
        decoded = decode_frame_untrusted(frame)
        if not isinstance(decoded, EnvelopeFrame):
            node.sent.append((trio.current_time(), frame))
            return
        signed: Signed[SignedMessage] = read_untrusted(
            decoded.raw, network=NETWORK, allowed=tuple(MESSAGE_TYPES.values())
        )
        node.sent.append((trio.current_time(), signed))
        if signed.envelope.kind not in NEVER_STORED and not node.ledger.has(signed.message_id):
            self.faults.append(f"{signed.envelope.kind} left before the ledger had it")

    def introduce(self, buyer: Node, *sellers: Node) -> None:
        """Tell ``buyer`` what ``sellers`` offer, as gossip would."""
        for seller in sellers:
            now = buyer.party.now_ms()
            life = AdvertLife(sequence=now, issued_at_ms=now, expires_at_ms=UnixMs(now + 600_000))
            advert = seller.own_advert.compose(life)
            assert advert is not None
            assert buyer.directory.hear_untrusted(advert.envelope.raw, now) is not None
            buyer.network.remember(PeerAddresses(peer_id=seller.peer_id, addresses=seller.network.addresses))

    async def settle(self) -> None:
        """Let every conversation end, then check that nothing is left of any."""
        await trio.sleep(SETTLED_S)
        assert not self.faults
        for node in self.nodes:
            assert not node.executor.held and node.executor.running == 0
            assert node.admission.running == 0 and not node.provider.jobs and not node.requester.jobs
            assert node.admission.slots_free(trio.current_time()) == node.admission.slots
            for row in await node.ledger.contracts(1_000):
                assert is_final(row.state), row
            # Every hash, signature and sum, against what was signed.
            assert (found := audit(node.ledger._store.db, lambda: None)).holds, found.differences


def order(
    *,
    tokens: int = 40,
    prompt: str = "tell me a story",
    path: str = "fast",
    price_max: int | None = None,
    model: str = "tiny",
    where: Any = "remote",  # as Order.where
    deadline_s: float = 600.0,
) -> Order:
    return Order(
        model=model,
        task_input=GenerateInput(prompt=prompt),
        sampling=Sampling(),
        tokens_out_max=tokens,
        where=where,
        path=path,  # type: ignore[arg-type]  # a literal in every caller
        price_max_microcredits=None if price_max is None else Microcredits(price_max),
        deadline_s=deadline_s,
    )


async def buy(node: Node, wanted: Order) -> Bought:
    """Carry an order out and return how it went; a bug of ours escapes."""
    began = trio.current_time()
    sink, events = trio.open_memory_channel[JobEvent](math.inf)
    error: Exception | None = None
    try:
        await node.requester.submit(wanted, sink)
    except Exception as exc:  # the test judges it
        error = exc
    sink.close()
    return Bought([event async for event in events], error, trio.current_time() - began)
