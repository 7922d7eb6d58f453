"""A requester and a provider in one process: real market code, real ledgers on disk, an in-memory stream between.

No sockets and no model: the answer is there at once, so that what is left is the contract. What goes to a ledger
is noted, to be repeated alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.clock import system_entropy, system_time
from node.config import Config, MarketSection
from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife
from node.execution.interface import DeviceReport, Piece, Prompt, ServedModel
from node.execution.worker_state import WorkerState
from node.keystore import SEED_BYTES, Ed25519Signer
from node.ledger.entries import ContractRow, Entry
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.order import JobEvent, Order
from node.market.own_advert import OwnAdvert
from node.market.party import Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.net.memory import MemoryFabric
from protocol import limits
from protocol.envelope import network_id
from protocol.states import ProviderState
from protocol.task import GenerateInput, Sampling
from protocol.tasks.registry import TaskInput
from protocol.units import ModelId, UnixMs

MODEL: Final = ServedModel(
    model_id=ModelId(bytes(32)),
    name="nothing",
    task="generate",
    dtype="fp32",
    device="cpu",
    context_tokens=2048,
    tokens_per_s_milli=1,
    memory_bytes=0,
    slots=1,
    profile="none",
)
# Promises are debts until a settlement, and nothing settles here.
MARKET: Final = MarketSection(
    credit_new_peer=limits.MICROCREDITS_MAX,
    credit_peer_max=limits.MICROCREDITS_MAX,
    credit_pool_new=limits.MICROCREDITS_MAX,
    spend_new_peer=limits.MICROCREDITS_MAX,
    spend_peer_max=limits.MICROCREDITS_MAX,
    spend_pool_new=limits.MICROCREDITS_MAX,
)
PROMPT_TOKENS: Final = 8
EVENTS_MAX: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """What one call wrote."""

    entries: tuple[Entry, ...]
    row: ContractRow | None
    is_new: bool


class NotedLedger(Ledger):
    """A real ledger that notes what it is asked, and tells when a provider's contract is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[Posting] = []
        self.closed = trio.Event()

    async def post(
        self, *entries: Entry, row: ContractRow | None = None, is_new: bool = False, fingerprint: bytes = b""
    ) -> None:
        self.calls.append(Posting(entries=entries, row=row, is_new=is_new))
        await super().post(*entries, row=row, is_new=is_new, fingerprint=fingerprint)
        if row is not None and row.state is ProviderState.CLOSED:
            self.closed.set()


class InstantModel:
    """An executor whose answer of the agreed length is there at once; without ``served`` it has no model."""

    def __init__(self, *served: ServedModel) -> None:
        self._served = served

    def devices(self) -> tuple[DeviceReport, ...]:
        return ()

    def models(self) -> tuple[ServedModel, ...]:
        return self._served

    def workers(self) -> tuple[WorkerState, ...]:
        return ()

    async def prepare(
        self,
        job_key: str,
        model_id: ModelId,
        task_input: TaskInput,
        tokens_out_max: int,
        *,
        scope: bytes = b"",
    ) -> Prompt:
        return Prompt(job_key=job_key, model_id=model_id, tokens_in=PROMPT_TOKENS)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        for number in range(tokens_out_max):
            is_last = number + 1 == tokens_out_max
            sink.send_nowait(Piece(tokens=(number,), text="x", finish="length" if is_last else None))

    async def release(self, prompt: Prompt) -> None:
        return


class TwoParties:
    """Both sides of a market of two; use it inside ``run``."""

    def __init__(self, folder: Path) -> None:
        self.fabric = MemoryFabric(latency_s=(0.0, 0.0))
        self.requester = _party(folder / "requester.db")
        self.provider = _party(folder / "provider.db")
        self._orders: Requester

    @property
    def ledgers(self) -> tuple[NotedLedger, NotedLedger]:
        """The requester's and the provider's."""
        ours, theirs = self.requester.ledger, self.provider.ledger
        assert isinstance(ours, NotedLedger) and isinstance(theirs, NotedLedger)
        return ours, theirs

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep both sides ready until cancelled."""
        config = Config(market=MARKET)
        net = self.fabric.network("requester", self.requester.peer_id)
        their_net = self.fabric.network("provider", self.provider.peer_id)
        admission = Admission(config.market)
        admission.slots = MODEL.slots
        executor = InstantModel(MODEL)
        provider = Provider(self.provider, executor, admission, config=config.market, on_change=lambda: None)
        provider.attach(their_net)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.fabric.run)
            for ledger in self.ledgers:
                await nursery.start(ledger.run)
            for network in (net, their_net):
                await nursery.start(network.run)
            await net.dial(their_net.addresses[0])
            advert = OwnAdvert(self.provider, provider, executor, admission, network=their_net, config=config)
            directory = Directory(self.requester.network, self.requester.peer_id)
            now_ms = system_time()
            ends_at_ms = UnixMs(now_ms + limits.ADVERT_LIFE_MS_MAX)
            signed = advert.compose(AdvertLife(sequence=now_ms, issued_at_ms=now_ms, expires_at_ms=ends_at_ms))
            assert signed is not None
            directory.hear_untrusted(signed.envelope.raw, now_ms)
            self._orders = Requester(
                self.requester, net, directory, InstantModel(), config=config.market, look_up=_nobody
            )
            task_status.started()

    async def trade(self, tokens_out: int) -> None:
        """Carry out one job; return once both sides are done and what it asked of the ledgers is noted there."""
        for ledger in self.ledgers:
            ledger.calls = []
        theirs = self.ledgers[1]
        theirs.closed = trio.Event()
        order = Order(
            model=MODEL.name,
            task_input=GenerateInput(prompt="x"),
            sampling=Sampling(),
            tokens_out_max=tokens_out,
            where="remote",
            path="fast",
        )
        sink, events = trio.open_memory_channel[JobEvent](EVENTS_MAX)
        with sink, events:
            await self._orders.submit(order, sink)
        await theirs.closed.wait()


def _party(path: Path) -> Party:
    return Party(
        signer=Ed25519Signer(system_entropy(SEED_BYTES)),
        network=network_id({"name": "bench"}),
        ledger=NotedLedger(path),
        wall_clock=system_time,
        entropy=system_entropy,
    )


async def _nobody(_model: str) -> int:
    return 0
