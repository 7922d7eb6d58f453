"""What both sides count of the same job."""

import pytest
import trio

from node.config import MarketSection
from node.market.order import DeadlineError, NobodyWillingError, UnknownModelError
from tests.fakes import Script, ScriptedExecutor
from tests.market.world import Node, World, buy, order
from tests.test_metrics import samples


def counted(node: Node, name: str, *labels: str) -> float:
    return samples(node.party.metrics).get((name, labels), 0.0)


async def market(world: World, script: Script | None = None) -> tuple[Node, Node]:
    seller = await world.node("seller", executor=ScriptedExecutor(script=script or Script()))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    return buyer, seller


async def test_both_sides_count_a_job_when_it_is_closed(world: World) -> None:
    buyer, seller = await market(world)
    finished = (await buy(buyer, order(path="quote"))).finished
    await trio.sleep(10)
    for node, role in ((buyer, "requester"), (seller, "worker")):
        assert counted(node, "souk_jobs_total", "", role, "closed") == 1
        assert counted(node, "souk_contracts_total", "closed", role) == 1
        assert counted(node, "souk_tokens_total", "in", "tiny", role) == finished.tokens_in
        assert counted(node, "souk_tokens_total", "out", "tiny", role) == 40
        assert counted(node, "souk_time_to_first_token_seconds_count", "tiny", role) == 1
        assert counted(node, "souk_job_duration_seconds_count", "tiny", role) == 1
    # The script takes 10 ms a token, and brings one at a time.
    assert counted(seller, "souk_inter_token_seconds_count", "tiny", "worker") == 39
    assert counted(seller, "souk_inter_token_seconds_sum", "tiny", "worker") == pytest.approx(0.39)
    assert counted(buyer, "souk_inter_token_seconds_count", "tiny", "requester") > 0
    assert counted(buyer, "souk_verifications_total", "receipt", "ok") == 1
    assert counted(buyer, "souk_spent_microcredits_total") == finished.cost_microcredits > 0
    assert counted(seller, "souk_earned_microcredits_total") == finished.cost_microcredits
    assert counted(seller, "souk_asks_total") == counted(seller, "souk_quotes_total") == 1


async def test_node_counts_a_local_job_apart_when_it_answers_itself(world: World) -> None:
    _buyer, seller = await market(world)
    await buy(seller, order(where="local"))
    assert counted(seller, "souk_jobs_total", "", "local", "closed") == 1
    assert counted(seller, "souk_tokens_total", "out", "tiny", "local") == 40
    assert counted(seller, "souk_job_duration_seconds_count", "tiny", "local") == 1
    assert counted(seller, "souk_inter_token_seconds_count", "tiny", "local") == 39
    assert counted(seller, "souk_contracts_total", "closed", "worker") == 0


async def test_requester_counts_why_orders_fail(world: World) -> None:
    buyer, seller = await market(world, Script(hangs_after=0))
    assert isinstance((await buy(buyer, order(model="huge"))).error, UnknownModelError)
    assert isinstance((await buy(buyer, order(price_max=1, path="quote"))).error, NobodyWillingError)
    assert isinstance((await buy(buyer, order(deadline_s=2))).error, DeadlineError)
    await trio.sleep(10)
    assert counted(buyer, "souk_jobs_total", "model_not_found", "requester", "failed") == 1
    assert counted(buyer, "souk_jobs_total", "no_capacity", "requester", "failed") == 1
    assert counted(buyer, "souk_jobs_total", "deadline", "requester", "expired") == 1
    assert counted(seller, "souk_declines_total", "price") == 1
    assert counted(seller, "souk_jobs_total", "", "worker", "closed") == 0


async def test_both_sides_count_a_job_as_cancelled_when_its_user_leaves(world: World) -> None:
    buyer, seller = await market(world, Script(step_s=1))
    with trio.move_on_after(5):
        await buy(buyer, order())
    await trio.sleep(10)
    assert counted(buyer, "souk_jobs_total", "", "requester", "cancelled") == 1
    assert counted(buyer, "souk_contracts_total", "cancelled", "requester") == 1
    assert counted(seller, "souk_jobs_total", "", "worker", "cancelled") == 1


async def test_provider_counts_contracts_that_it_declines(world: World) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(), market=MarketSection(credit_new_peer=0))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    assert (await buy(buyer, order(path="fast"))).error is not None
    assert counted(seller, "souk_declines_total", "credit") == 1
    assert counted(buyer, "souk_contracts_total", "declined", "requester") == 1
