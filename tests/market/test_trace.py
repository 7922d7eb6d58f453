"""Cancelling an order from outside: its reader is told, the provider is told and paid, nothing is left."""

import trio

from node.market.order import OrderCancelledError
from tests.fakes import Script, ScriptedExecutor
from tests.market.world import Bought, Node, World, buy, order


async def cancelled_after(node: Node, delay_s: float, *, where: str = "remote") -> Bought:
    bought: list[Bought] = []

    async def shop() -> None:
        bought.append(await buy(node, order(tokens=100, where=where)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop)
        await trio.sleep(delay_s)
        (record,) = node.party.journal.records()
        assert await node.requester.cancel(record.job_id)
        assert record.ended_ms is not None
    return bought[0]


async def test_order_ends_at_its_provider_when_it_is_cancelled(world: World) -> None:
    seller = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=1)))
    buyer = await world.node("r")
    world.introduce(buyer, seller)
    # Some of it is promised for by then.
    bought = await cancelled_after(buyer, 40)
    assert isinstance(bought.error, OrderCancelledError) and bought.took_s < 41
    await trio.sleep(10)
    for node in (buyer, seller):
        (record,) = node.party.journal.records()
        assert record.state == "cancelled" and record.steps[-1].name == "cancelled"
    ours, theirs = await buyer.only_row(), await seller.only_row()
    assert ours.vouchered == theirs.vouchered == theirs.metered
    assert {it.party.journal.records()[0].cost_microcredits for it in (buyer, seller)} == {ours.vouchered}


async def test_own_job_ends_when_it_is_cancelled(world: World) -> None:
    node = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=1)))
    bought = await cancelled_after(node, 5, where="local")
    assert isinstance(bought.error, OrderCancelledError) and node.executor.running == 0


async def test_cancel_finds_nothing_when_the_order_is_over(world: World) -> None:
    seller, buyer = await world.node("p", executor=ScriptedExecutor()), await world.node("r")
    world.introduce(buyer, seller)
    finished = (await buy(buyer, order())).finished
    assert not await buyer.requester.cancel(finished.job_id)
