"""Asking around: binding terms from everybody who has the model, and nothing bought."""

from dataclasses import replace

import pytest
import trio

from node.config import MarketSection
from node.market.order import Contracted, PassedOver, UnknownModelError, WrongTaskError
from node.market.quotes import Enquiry, Offered, Quotes
from protocol import limits
from protocol.tasks.embed import EmbedInput
from protocol.units import MS_PER_S
from tests.fakes import ScriptedExecutor
from tests.market.world import Node, World, buy, order

WANTED = Enquiry(model="tiny", tokens_in=1000, tokens_out_max=500)


async def seller(world: World, name: str, **settings: int) -> Node:
    return await world.node(name, executor=ScriptedExecutor(), market=MarketSection(**settings))


def quotes_of(node: Node) -> Quotes:
    async def look_up(_model: str) -> int:
        return 0

    network = node.network
    return Quotes(node.party, network, node.directory, config=node.market, look_up=look_up)


async def test_cheapest_offer_comes_first_and_refusals_last(world: World) -> None:
    dear, cheap = await seller(world, "dear"), await seller(world, "cheap", price_out=400_000)
    gone, refuses = await seller(world, "gone"), await seller(world, "no", credit_new_peer=0)
    buyer = await world.node("r")
    world.introduce(buyer, gone, dear, refuses, cheap)
    world.fabric.crash("gone")
    replies = await quotes_of(buyer).ask(WANTED)
    first, second, *refusals = replies
    assert isinstance(first, Offered) and isinstance(second, Offered)
    assert (first.peer_id, first.price_max_microcredits) == (cheap.peer_id, 200 + 200)
    assert (second.peer_id, second.price_max_microcredits) == (dear.peer_id, 200 + 400)
    assert 0 < first.hold_ms <= limits.QUOTE_HOLD_MS_MAX
    passed = {it.peer_id: it.code for it in refusals if isinstance(it, PassedOver)}
    assert passed == {gone.peer_id: "unreachable", refuses.peer_id: "credit"}
    assert await buyer.ledger.contracts(1) == [] and buyer.sent_kinds() == ["ask"] * 3


async def test_places_that_quotes_hold_are_free_again_when_nothing_is_bought(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    await quotes_of(buyer).ask(WANTED)
    assert provider.admission.slots_free(trio.current_time()) == 7
    await trio.sleep(limits.QUOTE_HOLD_MS_MAX / MS_PER_S)
    assert provider.admission.slots_free(trio.current_time()) == 8
    assert (await buy(buyer, order())).finished.tokens_out == 40


async def test_offer_above_what_a_job_may_cost_is_no_offer(world: World) -> None:
    provider = await seller(world, "p")
    buyer = await world.node("r", market=MarketSection(price_max=10))
    world.introduce(buyer, provider)
    (reply,) = await quotes_of(buyer).ask(WANTED)
    assert isinstance(reply, PassedOver) and reply.code == "price"


async def test_models_on_offer_are_named_when_nobody_has_the_wanted_one(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    with pytest.raises(UnknownModelError, match="tiny"):
        await quotes_of(buyer).ask(Enquiry(model="huge", tokens_in=1, tokens_out_max=1))


async def test_order_is_quoted_as_it_is(world: World) -> None:
    one, other, buyer = await seller(world, "p"), await seller(world, "q"), await world.node("r")
    world.introduce(buyer, one, other)
    wanted = order(tokens=10, where=other.peer_id)
    (reply,) = await quotes_of(buyer).ask(wanted)
    (contracted,) = [it for it in (await buy(buyer, wanted)).events if isinstance(it, Contracted)]
    assert isinstance(reply, Offered) and reply.peer_id == other.peer_id
    assert reply.price_max_microcredits == contracted.price_max_microcredits
    with pytest.raises(WrongTaskError):
        await quotes_of(buyer).ask(replace(wanted, task_input=EmbedInput(texts=("a",))))
    with pytest.raises(UnknownModelError):
        await quotes_of(buyer).ask(replace(wanted, where=buyer.peer_id))
