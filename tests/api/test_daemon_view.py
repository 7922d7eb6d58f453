"""What the view finds in real rooms after real jobs."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.api.daemon_view import OK, DaemonView, Rooms
from node.api.views import GateView
from node.api.why_node import why_node
from node.config import Config, MarketSection
from node.net.memory import MemoryFabric
from protocol.identity import peer_id_to_text
from tests.fakes import Script, ScriptedExecutor
from tests.market.world import Node, World, buy, order


def view_of(node: Node) -> DaemonView:
    rooms = Rooms(
        config=Config(),
        party=node.party,
        network=node.network,
        directory=node.directory,
        bans=node.bans,
        executor=node.executor,
        admission=node.admission,
        provider=node.provider,
        requester=node.requester,
        own_advert=lambda: None,
        gate=lambda: GateView(
            open=node.admission.closed is None, drained=node.admission.closed is not None, jobs=0
        ),
    )
    view = DaemonView(rooms, started_at=0.0)
    view.checks = dict.fromkeys(view.checks, OK)
    return view


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    return World(nursery, fabric, tmp_path)


async def test_jobs_are_shown_on_both_sides_while_they_run_and_after(
    world: World, autojump_clock: MockClock
) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(script=Script(step_s=1)))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    views = {"requester": view_of(buyer), "provider": view_of(seller)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buy, buyer, order(tokens=20))
        await trio.sleep(10.5)
        for role, view in views.items():
            (job,) = view.jobs()
            assert (job.role, job.ended_ms) == (role, None) and job.first_token_ms is not None
            assert 9 <= job.tokens_out <= 11 and job.state in ("streaming", "running")
    await trio.sleep(10)
    (bought,), (sold,) = (view.jobs() for view in views.values())
    assert (bought.job_id, bought.contract_id) == (sold.job_id, sold.contract_id)
    assert bought.peer_id == peer_id_to_text(seller.peer_id) and sold.peer_id == peer_id_to_text(buyer.peer_id)
    assert bought.cost_microcredits == sold.cost_microcredits > 0
    for view in views.values():
        assert bought.contract_id is not None
        for digits in (bought.job_id, bought.contract_id):
            (trace,) = view.find_jobs(digits[:8])
            assert trace.timeline[-1].step == "paid" and trace.job.state == "closed"


async def test_energy_is_shown_where_the_job_ran_and_nowhere_else(world: World, autojump_clock: MockClock) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(script=Script(energy_millijoules=1_250)))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    await buy(buyer, order())
    await buy(seller, order(where="local"))
    await trio.sleep(10)
    assert {job.role: job.energy_millijoules for job in view_of(seller).jobs()} == {
        "provider": 1_250,
        "local": 1_250,
    }
    assert [job.energy_millijoules for job in view_of(buyer).jobs()] == [None]
    for view, expected in ((view_of(seller), 1_250), (view_of(buyer), None)):
        assert [receipt.energy_millijoules for receipt in await view.receipts(9)] == [expected]


async def test_facts_tell_what_the_rooms_are_like(world: World, autojump_clock: MockClock) -> None:
    seller = await world.node(
        "seller", executor=ScriptedExecutor(slots=2), market=MarketSection(credit_new_peer=0)
    )
    buyer = await world.node("buyer", market=MarketSection(spend_new_peer=0))
    world.introduce(buyer, seller)
    buyer.directory.doubt(seller.peer_id)
    await buy(buyer, order(path="quote"))
    bought, sold = view_of(buyer).facts(), view_of(seller).facts()
    assert (bought.offering, bought.offering_free, bought.doubted, bought.spend_stranger) == (1, 1, 1, 0)
    assert (sold.models, sold.slots, sold.slots_free, sold.credit_stranger) == (1, 2, 2, 0)
    assert sold.declines == {"credit": 1}
    assert not why_node(sold).can_serve and not why_node(bought).can_buy
