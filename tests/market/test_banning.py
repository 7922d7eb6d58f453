"""What a ban does to the market, between real nodes on the in-memory network."""

import pytest
import trio

from node.bans import Ban, BanList, BanNotSyncedError
from node.discovery.discovery import AdvertLife
from node.ledger.entries import ContractRow
from node.market.banning import PARTING_S, Doorkeeper
from node.market.order import NobodyWillingError, PassedOver, UnknownModelError
from protocol.offer import Decline, Quote
from protocol.states import ProviderState, RequesterState
from protocol.units import PeerId, UnixMs
from tests.fakes import Script, ScriptedExecutor
from tests.market.test_provider import ask_of, quote_to
from tests.market.world import Node, World, buy, order


def keeper(node: Node) -> Doorkeeper:
    return Doorkeeper(node.bans, node.network, node.provider, node.requester)


def ban_of(node: Node, peer_id: PeerId) -> Ban:
    return Ban(peer_id=peer_id, since_ms=node.party.now_ms(), reason="pays nobody")


async def slow_pair(world: World) -> tuple[Node, Node, Node]:
    """Return a buyer that knows the first of two providers only; each token takes a second."""
    first = await world.node("p1", executor=ScriptedExecutor(script=Script(step_s=1)))
    second = await world.node("p2", executor=ScriptedExecutor())
    buyer = await world.node("r")
    world.introduce(buyer, first)
    return buyer, first, second


def life_now(node: Node) -> AdvertLife:
    now = node.party.now_ms()
    return AdvertLife(sequence=now, issued_at_ms=now, expires_at_ms=UnixMs(now + 600_000))


async def only(node: Node) -> ContractRow:
    (row,) = await node.ledger.contracts(9)
    return row


async def test_sold_job_is_handed_back_and_paid_as_promised_when_its_requester_is_banned(world: World) -> None:
    buyer, first, second = await slow_pair(world)

    async def ban() -> None:
        await trio.sleep(5.5)
        world.introduce(buyer, second)
        began = trio.current_time()
        await keeper(first).ban(ban_of(first, buyer.peer_id))
        assert trio.current_time() - began < PARTING_S, "it had to be cut off"
        assert not first.provider.jobs and not first.network.connected_peers()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ban)
        bought = await buy(buyer, order(tokens=20))
    assert bought.finished.tokens_out == 20, "the order goes on elsewhere"
    sold, bought_there = await only(first), (await buyer.ledger.contracts(9))[-1]
    assert sold.state is ProviderState.FAILED and 0 < sold.tokens_out < 20
    assert sold.vouchered == bought_there.vouchered


async def test_bought_job_is_cancelled_and_paid_as_metered_when_its_provider_is_banned(world: World) -> None:
    buyer, first, second = await slow_pair(world)

    async def ban() -> None:
        await trio.sleep(5.5)
        world.introduce(buyer, second)
        began = trio.current_time()
        await keeper(buyer).ban(ban_of(buyer, first.peer_id))
        assert trio.current_time() - began < PARTING_S
        assert first.peer_id not in buyer.network.connected_peers()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ban)
        bought = await buy(buyer, order(tokens=20))
    assert bought.finished.tokens_out == 20 and bought.finished.peer_id == second.peer_id
    (passed,) = [it for it in bought.events if isinstance(it, PassedOver)]
    assert passed.code == "banned" and passed.peer_id == first.peer_id
    sold = await only(first)
    assert sold.state is ProviderState.CANCELLED and sold.metered == sold.vouchered > 0
    there = (await buyer.ledger.contracts(9))[-1]
    assert there.state is RequesterState.CANCELLED and there.vouchered == sold.vouchered


async def test_banned_peer_is_cut_off_when_it_will_not_part(world: World) -> None:
    buyer, first, _second = await slow_pair(world)

    async def ban() -> None:
        await trio.sleep(5.5)
        # Its ledger hangs: no receipt comes.
        first.ledger.lag_s = 30.0
        began = trio.current_time()
        await keeper(buyer).ban(ban_of(buyer, first.peer_id))
        assert trio.current_time() - began <= PARTING_S
        assert not buyer.network.connected_peers()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ban)
        assert (await buy(buyer, order(tokens=20))).error is not None
    first.ledger.lag_s = 0.0


class Unconfirmed(BanList):
    """Bans, on a disk that does not say so."""

    async def add(self, ban: Ban) -> None:
        await super().add(ban)
        raise BanNotSyncedError("it is done, but a power cut may undo it")


async def test_banned_peer_is_parted_from_when_the_disk_did_not_confirm_the_ban(world: World) -> None:
    buyer, first, _second = await slow_pair(world)
    assert (await buy(buyer, order(tokens=1))).finished.tokens_out == 1
    bans = Unconfirmed()
    assert first.network.connected_peers()
    with pytest.raises(BanNotSyncedError, match="it is done"):
        await Doorkeeper(bans, first.network, first.provider).ban(ban_of(first, buyer.peer_id))
    assert buyer.peer_id in bans and not first.network.connected_peers()


async def test_buyer_gets_nothing_from_whoever_banned_it_until_that_is_lifted(world: World) -> None:
    provider, buyer = await world.node("p", executor=ScriptedExecutor()), await world.node("r")
    world.introduce(buyer, provider)
    await keeper(provider).ban(ban_of(provider, buyer.peer_id))
    refused = await buy(buyer, order())
    assert isinstance(refused.error, NobodyWillingError) and not provider.sent
    assert [it.code for it in refused.error.refusals] == ["unreachable"]
    assert await keeper(provider).unban(buyer.peer_id) and not await keeper(provider).unban(buyer.peer_id)
    assert (await buy(buyer, order())).finished.tokens_out == 40


async def test_banned_provider_is_not_asked_until_its_ban_is_lifted(world: World) -> None:
    provider, buyer = await world.node("p", executor=ScriptedExecutor()), await world.node("r")
    world.introduce(buyer, provider)
    await keeper(buyer).ban(ban_of(buyer, provider.peer_id))
    advert = provider.own_advert.compose(life_now(buyer))
    assert advert is not None and buyer.directory.hear_untrusted(advert.envelope.raw, buyer.party.now_ms()) is None
    assert isinstance((await buy(buyer, order())).error, UnknownModelError), "its advert is no hint any more"
    assert not provider.sent
    assert await keeper(buyer).unban(provider.peer_id)
    world.introduce(buyer, provider)
    assert (await buy(buyer, order())).finished.tokens_out == 40


async def test_asks_and_contracts_of_a_banned_peer_are_declined_while_it_is_still_connected(world: World) -> None:
    provider, buyer = await world.node("p", executor=ScriptedExecutor()), await world.node("r")
    world.introduce(buyer, provider)
    assert isinstance((await quote_to(buyer, provider, ask_of(buyer, provider))).message, Quote)
    # On the list, but not disconnected: as in the seconds in which contracts end.
    await provider.bans.add(ban_of(provider, buyer.peer_id))
    answer = (await quote_to(buyer, provider, ask_of(buyer, provider))).message
    assert isinstance(answer, Decline) and answer.code == "draining"
    assert "owner" in answer.message and "pays nobody" not in answer.message
    declined = (await buy(buyer, order(path="fast"))).error
    assert isinstance(declined, NobodyWillingError) and declined.refusals[0].code == "draining"
    assert not await provider.ledger.contracts(9)


async def test_contract_is_not_signed_when_its_requester_is_banned_while_the_prompt_is_read(world: World) -> None:
    executor = ScriptedExecutor(script=Script(prepare_s=3))
    provider, buyer = await world.node("p", executor=executor), await world.node("r")
    world.introduce(buyer, provider)

    async def ban() -> None:
        await trio.sleep(1)
        await provider.bans.add(ban_of(provider, buyer.peer_id))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ban)
        declined = (await buy(buyer, order(path="fast"))).error
    assert isinstance(declined, NobodyWillingError) and declined.refusals[0].code == "draining"
    assert not await provider.ledger.contracts(9)


async def test_contract_is_handed_back_when_its_requester_is_banned_while_it_is_signed(world: World) -> None:
    provider, buyer = (
        await world.node("p", executor=ScriptedExecutor(script=Script(step_s=1))),
        await world.node("r"),
    )
    world.introduce(buyer, provider)
    provider.ledger.lag_s = 0.5

    async def ban() -> None:
        while not provider.provider._signing:  # noqa: ASYNC110 (nobody is told of it)
            await trio.sleep(0.01)
        began = trio.current_time()
        await keeper(provider).ban(ban_of(provider, buyer.peer_id))
        assert 0.4 < trio.current_time() - began < PARTING_S
        assert not provider.provider.jobs and not provider.network.connected_peers()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ban)
        failed = (await buy(buyer, order(path="fast"))).error
    assert isinstance(failed, NobodyWillingError)
    assert (await only(provider)).state is ProviderState.FAILED
    provider.ledger.lag_s = 0.0
