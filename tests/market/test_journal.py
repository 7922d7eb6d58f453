"""What the journal tells of a job, on both sides; and that it stays small and holds no word of anybody."""

from dataclasses import replace

import pytest
import trio

from node.market.journal import JOBS_MAX, STEPS_FIRST, STEPS_MAX, JobRecord, Journal, Step
from node.market.order import NobodyWillingError, UnknownModelError
from protocol.units import JobId, MessageId, UnixMs
from tests.fakes import EPOCH_MS, Script, ScriptedExecutor, served_model
from tests.market.world import Node, World, buy, order


def names(record: JobRecord) -> list[str]:
    return [step.name for step in record.steps]


def only_record(node: Node) -> JobRecord:
    (record,) = node.party.journal.records()
    return record


async def seller(world: World, name: str, script: Script | None = None) -> Node:
    return await world.node(name, executor=ScriptedExecutor(script=script or Script()))


async def test_both_sides_tell_a_job_from_its_start_to_its_pay(world: World) -> None:
    provider, buyer = await seller(world, "p", Script(first_s=2)), await world.node("r")
    world.introduce(buyer, provider)
    finished = (await buy(buyer, order(path="quote"))).finished
    await trio.sleep(10)
    bought, sold = only_record(buyer), only_record(provider)
    assert names(bought) == [
        "asking",
        "quoted",
        "offered",
        "contracted",
        "first_token",
        "done",
        "verified",
        "paid",
    ]
    assert names(sold) == ["contracted", "first_token", "done", "paid"]
    for record, role, peer in ((bought, "requester", provider), (sold, "worker", buyer)):
        assert (record.role, record.state, record.code) == (role, "closed", None)
        assert (record.job_id, record.contract_id) == (finished.job_id, finished.contract_id)
        assert record.peer_id == peer.peer_id and record.model == "tiny"
        assert (record.tokens_in, record.tokens_out) == (finished.tokens_in, 40)
        assert record.cost_microcredits == finished.cost_microcredits > 0
        assert record.first_token_at_ms is not None and 2000 <= record.first_token_at_ms - record.started_ms < 2500
        assert record.ended_ms is not None
        times = [step.at_ms for step in record.steps]
        assert times == sorted(times) and times[-1] <= record.ended_ms
    assert bought.started_ms == EPOCH_MS


async def test_job_tells_that_its_model_was_loaded_first(world: World) -> None:
    cold = replace(served_model(), is_loaded=False)
    provider = await world.node("p", executor=ScriptedExecutor(served=(cold,), script=Script(prepare_s=1)))
    buyer = await world.node("r")
    world.introduce(buyer, provider)
    await buy(buyer, order())
    await buy(provider, order(where="local"))
    await trio.sleep(10)
    local, sold = provider.party.journal.records()
    assert names(sold) == ["loading", "contracted", "first_token", "done", "paid"]
    assert names(local) == ["asking", "loading", "contracted", "first_token", "done"]
    for record in (local, sold):
        loading, contracted = (step for step in record.steps if step.name in ("loading", "contracted"))
        assert contracted.at_ms - loading.at_ms >= 1000


async def test_both_sides_tell_that_a_job_waits_when_all_slots_are_taken(world: World) -> None:
    executor = ScriptedExecutor(slots=1, script=Script(step_s=0.1))
    provider, buyer = await world.node("p", executor=executor), await world.node("r")
    world.introduce(buyer, provider)
    async with trio.open_nursery() as both:
        both.start_soon(buy, buyer, order())
        await trio.sleep(1)
        both.start_soon(buy, buyer, order(path="quote"))
    await trio.sleep(10)
    waited, _first = buyer.party.journal.records()
    assert names(waited)[3:6] == ["contracted", "queued", "first_token"]
    assert (waited.steps[4].queue_ms or 0) > 0
    sold, _first = provider.party.journal.records()
    assert names(sold)[:3] == ["contracted", "queued", "first_token"]


async def test_follower_is_told_of_every_step_and_of_the_end(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    heard: list[tuple[str, str]] = []
    for node in (buyer, provider):
        node.party.journal.follow(
            lambda it, step: heard.append((it.role, "the end" if step is None else step.name))
        )
    await buy(buyer, order())
    await trio.sleep(10)
    for role, node in (("requester", buyer), ("worker", provider)):
        assert [name for who, name in heard if who == role] == [*names(only_record(node)), "the end"]


async def test_order_tells_of_a_stream_that_was_lost_and_came_back(world: World) -> None:
    provider, buyer = await seller(world, "p", Script(step_s=0.5)), await world.node("r")
    world.introduce(buyer, provider)

    async def cut() -> None:
        await trio.sleep(5)
        await buyer.network.inner.disconnect(provider.peer_id)

    world.nursery.start_soon(cut)
    assert (await buy(buyer, order(tokens=40))).finished.tokens_out == 40
    await trio.sleep(10)
    for node in (buyer, provider):
        told = names(only_record(node))
        assert (
            told.index("first_token") < told.index("stream_lost") < told.index("stream_back") < told.index("done")
        )


async def test_order_tells_who_went_on_when_a_provider_died(world: World) -> None:
    first, second = await seller(world, "p", Script(dies_after=7)), await seller(world, "q")
    buyer = await world.node("r")
    world.introduce(buyer, first)
    bought: list[str] = []

    async def shop() -> None:
        bought.append((await buy(buyer, order())).text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop)
        await trio.sleep(0.01)
        world.introduce(buyer, second)
    record = only_record(buyer)
    told = names(record)
    assert told.index("first_token") < told.index("passed_over") < told.index("continued")
    passed = record.steps[told.index("passed_over")]
    assert (passed.peer_id, passed.code) == (first.peer_id, "failed") and passed.message
    continued = record.steps[told.index("continued")]
    assert (continued.peer_id, continued.tokens_out) == (second.peer_id, 7)
    assert record.tokens_out == 40 and record.state == "closed"


async def test_order_tells_why_nobody_took_it(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    assert isinstance((await buy(buyer, order(price_max=1))).error, NobodyWillingError)
    record = only_record(buyer)
    assert names(record) == ["asking", "passed_over", "failed"]
    assert record.steps[1].code == "price" and (record.state, record.code) == ("failed", "no_capacity")


async def test_order_is_told_of_even_when_nobody_has_its_model(world: World) -> None:
    buyer = await world.node("r")
    assert isinstance((await buy(buyer, order(model="huge"))).error, UnknownModelError)
    record = only_record(buyer)
    assert (record.model, record.state, record.code) == ("huge", "failed", "model_not_found")
    assert record.message is not None and "huge" in record.message


async def test_local_job_is_told_of_without_contract_or_pay(world: World) -> None:
    node = await seller(world, "p")
    _ = (await buy(node, order(where="local"))).finished
    record = only_record(node)
    assert names(record) == ["asking", "contracted", "first_token", "done"]
    assert (record.role, record.state, record.contract_id) == ("local", "closed", None)


async def test_journal_holds_neither_prompt_nor_answer(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(prompt="a secret word"))
    await trio.sleep(10)
    shown = repr(buyer.party.journal.records()) + repr(provider.party.journal.records())
    assert "secret" not in shown and bought.text.split()[3] not in shown


@pytest.mark.parametrize("count", [JOBS_MAX, JOBS_MAX + 7])
def test_journal_forgets_the_oldest_jobs_that_are_over(count: int) -> None:
    journal = Journal()
    for number in range(count):
        record = JobRecord(
            role="requester", job_id=JobId(number.to_bytes(16)), model="m", started_ms=UnixMs(number)
        )
        journal.begin_order(record)
        if number:
            record.end("closed", UnixMs(number))
    kept = [record.started_ms for record in journal.records()]
    # The first one is still open.
    assert len(kept) == JOBS_MAX and kept[0] == count - 1 and kept[-1] == 0


def test_customers_cannot_push_our_orders_out() -> None:
    journal = Journal()
    ours = JobRecord(role="requester", job_id=JobId(b"o" * 16), model="m", started_ms=UnixMs(1))
    journal.begin_order(ours)
    for number in range(2 * JOBS_MAX):
        sale = JobRecord(role="worker", job_id=JobId(b"s" * 16), model="m", started_ms=UnixMs(2))
        sale.end("closed", UnixMs(3))
        journal.begin_sale(MessageId(number.to_bytes(32)), sale)
    assert journal.find(ours.job_id.hex()) == [ours] and len(journal.records()) == JOBS_MAX + 1


def test_timeline_keeps_its_start_and_its_newest_steps_when_it_is_too_long() -> None:
    record = JobRecord(role="requester", job_id=JobId(b"o" * 16), model="m", started_ms=UnixMs(0))
    for number in range(STEPS_MAX + 30):
        record.note(Step(name="passed_over", at_ms=UnixMs(number)))
    times = [step.at_ms for step in record.steps]
    assert len(times) == STEPS_MAX and record.steps_left_out == 30
    assert times[:STEPS_FIRST] == list(range(STEPS_FIRST)) and times[-1] == STEPS_MAX + 29
