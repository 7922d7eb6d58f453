"""After a restart: what the ledger gives back of the journal, beside what the journal itself had seen."""

import pytest
import trio

from node.market.journal import JOBS_MAX, JobRecord, Journal
from node.market.restored import orders_of, sale_of
from protocol.states import ProviderState, RequesterState
from tests.fakes import Script, ScriptedExecutor
from tests.market.world import Node, World, buy, order


async def restored(node: Node) -> Journal:
    journal = Journal()
    journal.restore(
        orders_of(await node.ledger.timelines("requester", JOBS_MAX)),
        map(sale_of, await node.ledger.timelines("provider", JOBS_MAX)),
    )
    return journal


def facts(record: JobRecord) -> tuple[object, ...]:
    return (
        record.role, record.job_id, record.model, record.state, record.contract_id, record.peer_id,
        record.tokens_in, record.tokens_out, record.energy_millijoules,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["quote", "fast"])
async def test_closed_job_comes_back_with_what_was_signed_on_both_sides(world: World, path: str) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(script=Script(energy_millijoules=1_250)))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    _ = (await buy(buyer, order(path=path))).finished
    await trio.sleep(10)
    for node, steps in (
        (buyer, ["quoted", "offered", "contracted", "done", "verified"][path == "fast" :]),
        (seller, ["contracted", "done", "paid"]),
    ):
        (lived,), (record,) = node.party.journal.records(), (await restored(node)).records()
        assert record.is_restored and not lived.is_restored
        assert facts(record) == facts(lived)
        assert [step.name for step in record.steps] == steps
        times = {step.name: step.at_ms for step in lived.steps}
        assert all(step.at_ms == pytest.approx(times[step.name], abs=20) for step in record.steps)
        assert record.ended_ms is not None and record.first_token_at_ms is None
        assert abs(record.started_ms - lived.started_ms) < 100  # what the first dial took
    assert record.cost_microcredits > 0 and record.energy_millijoules == 1_250


async def test_cancelled_job_comes_back_as_cancelled_and_not_as_done(world: World) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(script=Script(step_s=1)))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    with trio.move_on_after(5):
        await buy(buyer, order())
    await trio.sleep(10)
    for node in (buyer, seller):
        (lived,), (record,) = node.party.journal.records(), (await restored(node)).records()
        assert facts(record) == facts(lived) and record.state == "cancelled"
        assert record.steps[-1].name == "cancelled"
    assert "done" not in {step.name for step in record.steps}


async def test_order_that_went_on_elsewhere_is_one_job(world: World) -> None:
    first = await world.node("first", executor=ScriptedExecutor(script=Script(dies_after=10)))
    second = await world.node("second", executor=ScriptedExecutor())
    buyer = await world.node("buyer")
    world.introduce(buyer, first)
    async with trio.open_nursery() as jobs:

        @jobs.start_soon
        async def join_later() -> None:
            await trio.sleep(0.05)
            world.introduce(buyer, second)

        finished = (await buy(buyer, order())).finished
    await trio.sleep(10)
    (record,) = (await restored(buyer)).records()
    assert record.state == "closed" and record.contract_id == finished.contract_id
    assert (record.tokens_in, record.tokens_out) == (finished.tokens_in, finished.tokens_out)
    assert record.cost_microcredits == finished.cost_microcredits
    (sold,) = (await restored(first)).records()
    assert sold.state == "failed" and sold.job_id == record.job_id


async def test_restored_jobs_make_room_for_new_ones_and_tell_nobody(world: World) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor())
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    for _ in range(3):
        _ = (await buy(buyer, order(tokens=4))).finished
    await trio.sleep(10)
    lines = await buyer.ledger.timelines("requester", 2)
    assert [line.row.job_id for line in lines] == [
        record.job_id for record in reversed(buyer.party.journal.records()[:2])
    ]
    assert {line.row.state for line in lines} == {RequesterState.CLOSED} and all(it.closed_ok for it in lines)
    assert await seller.ledger.timelines("requester", 2) == []
    assert [it.row.state for it in await seller.ledger.timelines("provider", 9)] == 3 * [ProviderState.CLOSED]
    journal, told = Journal(), list[JobRecord]()
    journal.follow(lambda record, _step: told.append(record))
    journal.restore(orders_of(lines), ())
    assert len(journal.records()) == 2 and not told
