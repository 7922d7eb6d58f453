"""A ban between two nodes on real sockets: real libp2p, market, ledgers and files; only the model is scripted."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from node.bans import Ban, BanList
from node.clock import system_entropy, system_time
from node.config import Config
from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife
from node.errors import TransportError
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.banning import PARTING_S, Doorkeeper
from node.market.order import JobEvent, NobodyWillingError, OrderError
from node.market.own_advert import OwnAdvert
from node.market.party import Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.net.libp2p import LibP2pNetwork
from protocol.states import ProviderState, RequesterState
from protocol.units import UnixMs
from tests.fakes import Script, ScriptedExecutor, signer_of
from tests.market.world import NETWORK, order
from tests.net.world import eventually, where

pytestmark = pytest.mark.integration
TOKENS = 40


@dataclass
class Place:
    """One node's rooms, as the daemon ties them together."""

    name: str
    folder: Path
    executor: ScriptedExecutor
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stopped: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        signer, config = signer_of(self.name), Config()
        self.party = Party(
            signer=signer,
            network=NETWORK,
            ledger=Ledger(self.folder / f"{self.name}.db"),
            wall_clock=system_time,
            entropy=system_entropy,
        )
        self.bans = BanList(self.folder / f"{self.name}.bans")
        self.bans.read()
        self.net = LibP2pNetwork(signer.seed, listen=("/ip4/127.0.0.1/tcp/0",), network=NETWORK)
        self.net.refuse(self.bans.__contains__)
        admission = Admission(config.market, banned=self.bans)
        admission.slots = self.executor.slots if self.executor.served else 0
        self.provider = Provider(
            self.party, self.executor, admission, config=config.market, on_change=lambda: None
        )
        self.provider.attach(self.net)
        self.advert = OwnAdvert(
            self.party, self.provider, self.executor, admission, network=self.net, config=config
        )
        self.directory = Directory(NETWORK, signer.peer_id, banned=self.bans)
        self.requester = Requester(
            self.party, self.net, self.directory, self.executor, config=config.market, look_up=self._look_up
        )
        self.doorkeeper = Doorkeeper(self.bans, self.net, self.provider, self.requester)

    @staticmethod
    async def _look_up(_model: str) -> int:
        return 0

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.party.ledger.run)
                await nursery.start(self.net.run)
                task_status.started()
        self.stopped.set()

    def ban_of(self, other: "Place") -> Ban:
        return Ban(peer_id=other.net.peer_id, since_ms=self.party.now_ms(), reason="sends garbage")

    def hear(self, other: "Place") -> bool:
        """Take in what another one advertises, as gossip would bring it."""
        now = self.party.now_ms()
        advert = other.advert.compose(
            AdvertLife(sequence=now, issued_at_ms=now, expires_at_ms=UnixMs(now + 60_000))
        )
        assert advert is not None
        self.net.remember(where(other.net))
        return self.directory.hear_untrusted(advert.envelope.raw, now) is not None

    async def buy(self, *, path: str = "fast") -> OrderError | None:
        sink, events = trio.open_memory_channel[JobEvent](TOKENS * 4)
        with sink, events:
            try:
                await self.requester.submit(order(tokens=TOKENS, path=path), sink)
            except OrderError as exc:
                return exc
        return None


async def refusal(buyer: Place, *, path: str = "fast") -> str:
    error = await buyer.buy(path=path)
    assert isinstance(error, NobodyWillingError), error
    (passed,) = error.refusals
    return passed.code


async def test_banned_peer_is_parted_from_and_kept_out_until_it_is_unbanned(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    seller = Place("seller", tmp_path, ScriptedExecutor(script=Script(step_s=0.001)))
    buyer = Place("buyer", tmp_path, ScriptedExecutor(served=()))
    for place in (seller, buyer):
        await nursery.start(place.run)
    assert buyer.hear(seller) and await buyer.buy() is None

    # In the middle of an answer, of which the whole would take eight seconds.
    await eventually(lambda: not seller.provider.jobs)
    seller.executor.script = Script(step_s=0.2)
    errors: list[OrderError | None] = []

    async def order_again() -> None:
        errors.append(await buyer.buy())

    async with trio.open_nursery() as buying:
        buying.start_soon(order_again)
        await eventually(lambda: any(job.tokens_out for job in seller.provider.jobs.values()))
        began = trio.current_time()
        await seller.doorkeeper.ban(seller.ban_of(buyer))
        assert trio.current_time() - began < PARTING_S, "it had to be cut off"
        assert not seller.net.connected_peers() and not seller.provider.jobs
    assert errors[0] is not None
    sold, bought = (await seller.party.ledger.contracts(1))[0], (await buyer.party.ledger.contracts(1))[0]
    assert sold.state is ProviderState.FAILED and 0 < sold.tokens_out < TOKENS
    assert bought.contract_id == sold.contract_id and bought.state is RequesterState.CLOSED
    assert bought.vouchered == sold.vouchered

    # It is not let in, and not asked.
    await eventually(lambda: not buyer.net.connected_peers())
    assert await refusal(buyer) == "unreachable"
    with pytest.raises(TransportError, match="refused by this node"):
        await seller.net.dial(buyer.net.addresses[0])
    await eventually(lambda: not buyer.net.connected_peers())

    # A restart forgets nothing.
    seller.scope.cancel()
    await seller.stopped.wait()
    seller = Place("seller", tmp_path, ScriptedExecutor(script=Script(step_s=0.001)))
    await nursery.start(seller.run)
    buyer.net.remember(where(seller.net))
    assert seller.bans.all()[0].reason == "sends garbage" and await refusal(buyer) == "unreachable"

    # All works again; and one that is banned while it is connected hears so before the connection ends.
    assert await seller.doorkeeper.unban(buyer.net.peer_id)
    assert await buyer.buy() is None
    await seller.bans.add(seller.ban_of(buyer))
    assert await refusal(buyer, path="quote") == "draining"
    assert len(await seller.party.ledger.contracts(9)) == 3  # complete, handed back, complete
