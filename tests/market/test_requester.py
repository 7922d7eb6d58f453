"""How an order finds its provider, what is tried next, and how the failure is named when nobody is left."""

import math
from dataclasses import replace

import pytest
import trio

from node.config import MarketSection
from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.market.order import (
    Asking,
    Contracted,
    DeadlineError,
    InputRefusedError,
    JobEvent,
    JobFailedError,
    NobodyWillingError,
    PassedOver,
    PromptTooLongError,
    UnknownModelError,
)
from protocol.states import ProviderState, RequesterState
from protocol.units import JobId
from tests.fakes import Script, ScriptedExecutor, served_model
from tests.market.world import Bought, Node, World, buy, order


async def seller(world: World, name: str, script: Script | None = None, **settings: int) -> Node:
    slots = settings.pop("slots", 8)
    context = settings.pop("context_tokens", 4096)
    executor = ScriptedExecutor(
        served=(served_model(context_tokens=context),), slots=slots, script=script or Script()
    )
    return await world.node(name, executor=executor, market=MarketSection(**settings))


def codes(bought: Bought) -> list[str]:
    return [event.code for event in bought.events if isinstance(event, PassedOver)]


async def test_cheaper_provider_is_asked_first(world: World) -> None:
    dear, cheap = await seller(world, "dear"), await seller(world, "cheap", price_out=400_000)
    buyer = await world.node("r")
    world.introduce(buyer, dear, cheap)
    bought = await buy(buyer, order())
    asking = bought.events[0]
    assert isinstance(asking, Asking) and asking.peer_ids == (cheap.peer_id, dear.peer_id)
    assert bought.finished.peer_id == cheap.peer_id


async def test_order_goes_to_the_peer_that_was_named(world: World) -> None:
    dear, cheap = await seller(world, "dear"), await seller(world, "cheap", price_out=400_000)
    buyer = await world.node("r")
    world.introduce(buyer, dear, cheap)
    assert (await buy(buyer, order(where=dear.peer_id))).finished.peer_id == dear.peer_id


async def test_models_on_offer_are_named_when_the_wanted_one_is_unknown(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(model="huge"))
    assert isinstance(bought.error, UnknownModelError) and bought.error.available == ("tiny",)


@pytest.mark.parametrize("path", ["fast", "quote", "auto"])
async def test_nobody_is_paid_more_than_the_user_allows(world: World, path: str) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(path=path, price_max=5))
    assert isinstance(bought.error, NobodyWillingError) and codes(bought) == ["price"]
    assert "at most 5" in bought.error.refusals[0].message or "allows 5" in bought.error.refusals[0].message
    assert await buyer.ledger.contracts(1) == []


@pytest.mark.parametrize("path", ["fast", "quote"])
async def test_failure_names_the_prompt_when_it_fits_nobody(world: World, path: str) -> None:
    refusal = JobRefusedError("it has 5000 tokens, 4096 fit", code="context_exceeded")
    provider, buyer = await seller(world, "p", Script(refusal=refusal)), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(path=path))
    assert isinstance(bought.error, PromptTooLongError) and "4096 fit" in str(bought.error)


@pytest.mark.parametrize("path", ["fast", "quote"])
async def test_failure_names_the_input_when_every_provider_refuses_it(world: World, path: str) -> None:
    refused = Script(refusal=JobRefusedError("roles must alternate", code="input"))
    first, second, buyer = (
        await seller(world, "p", refused),
        await seller(world, "q", refused),
        await world.node("r"),
    )
    world.introduce(buyer, first, second)
    bought = await buy(buyer, order(path=path))
    assert isinstance(bought.error, InputRefusedError) and "roles must alternate" in str(bought.error)


async def test_one_providers_word_on_the_input_does_not_hide_that_another_had_no_room(world: World) -> None:
    refused = Script(refusal=JobRefusedError("roles must alternate", code="input"))
    busy = Script(refusal=ExecutionError("models with jobs are in the way", code="model_busy"))
    first, second = await seller(world, "p", refused), await seller(world, "q", busy)
    buyer = await world.node("r")
    world.introduce(buyer, first, second)
    assert isinstance((await buy(buyer, order(path="quote"))).error, NobodyWillingError)


async def test_answer_that_fits_no_context_is_refused_before_anything_is_sent(world: World) -> None:
    provider, buyer = await seller(world, "p", context_tokens=64), await world.node("r")
    world.introduce(buyer, provider)
    assert isinstance((await buy(buyer, order(tokens=64))).error, PromptTooLongError)
    assert buyer.sent == []


async def test_input_that_cannot_travel_is_refused(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(prompt="x" * (1 << 20)))
    assert isinstance(bought.error, PromptTooLongError)


async def test_input_of_nearly_a_megabyte_travels(world: World) -> None:
    provider, buyer = (
        await seller(world, "p", context_tokens=1 << 20, credit_new_peer=10**9),
        await world.node("r"),
    )
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(prompt="x" * ((1 << 20) - 100), price_max=10**9))
    assert bought.finished.tokens_in == (1 << 18) - 24


async def test_next_provider_is_tried_when_the_first_one_declines(world: World) -> None:
    busy, free = await seller(world, "busy", price_out=400_000), await seller(world, "free")
    buyer = await world.node("r")
    world.introduce(buyer, busy, free)
    busy.admission.slots = busy.admission.queue_max = 0
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == free.peer_id and codes(bought) == ["busy"]


async def test_next_provider_is_tried_when_the_first_one_is_gone(world: World) -> None:
    gone, there = await seller(world, "gone", price_out=400_000), await seller(world, "there")
    buyer = await world.node("r")
    world.introduce(buyer, gone, there)
    world.fabric.crash("gone")
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == there.peer_id and codes(bought) == ["unreachable"]
    # Until it says something new whoever else there is comes first.
    found = buyer.directory.candidates("tiny", buyer.party.now_ms())
    assert {it.peer_id: it.is_doubted for it in found} == {gone.peer_id: True, there.peer_id: False}
    assert codes(await buy(buyer, order())) == []


async def test_order_waits_its_turn_when_everybody_is_busy(world: World) -> None:
    provider, buyer = await seller(world, "p", Script(step_s=0.5), slots=1, queue_max=0), await world.node("r")
    world.introduce(buyer, provider)
    results: list[Bought] = []

    async def one() -> None:
        results.append(await buy(buyer, order(tokens=20)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert [it.finished.tokens_out for it in results] == [20, 20]
    assert provider.executor.running_max == 1
    assert max(it.took_s for it in results) < 25


async def test_order_fails_when_everybody_stays_busy_for_a_minute(world: World) -> None:
    provider, buyer = await seller(world, "p", slots=1, queue_max=0), await world.node("r")
    world.introduce(buyer, provider)
    provider.admission.slots = 0
    bought = await buy(buyer, order())
    assert isinstance(bought.error, NobodyWillingError) and set(codes(bought)) == {"busy"}
    assert 50 <= bought.took_s <= 61


async def test_quote_is_asked_for_when_the_standing_offer_is_declined(world: World) -> None:
    # Its window is smaller than the one that the fast path proposes.
    provider, buyer = await seller(world, "p", voucher_window_tokens=8), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(path="auto"))
    assert bought.finished.tokens_out == 40
    assert buyer.sent_kinds()[:4] == ["contract", "ask", "contract", "voucher"]


async def test_old_offer_is_asked_about_first(world: World) -> None:
    provider, buyer = await seller(world, "p"), await world.node("r")
    world.introduce(buyer, provider)
    await trio.sleep(61)
    assert (await buy(buyer, order(path="auto"))).finished.tokens_out == 40
    assert buyer.sent_kinds()[0] == "ask"


async def test_answer_in_work_ends_when_the_deadline_passes(world: World) -> None:
    provider, buyer = await seller(world, "p", Script(step_s=1)), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(tokens=400, deadline_s=50))
    assert isinstance(bought.error, DeadlineError) and 50 <= bought.took_s <= 54
    await trio.sleep(10)
    mine, theirs = await buyer.only_row(), await provider.only_row()
    assert mine.vouchered == theirs.vouchered == theirs.metered > 0
    assert provider.executor.running == 0


async def test_order_ends_when_the_deadline_passes_in_a_queue(world: World) -> None:
    provider, buyer = await seller(world, "p", Script(first_s=200)), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, order(deadline_s=20))
    assert bought.error is not None and bought.took_s <= 25
    await trio.sleep(10)
    assert (await provider.only_row()).metered == 0


async def test_own_model_runs_without_a_contract(world: World) -> None:
    node = await seller(world, "p")
    bought = await buy(node, order(where="any"))
    assert bought.finished.contract_id is None and bought.finished.cost_microcredits == 0
    assert bought.finished.tokens_out == 40 and bought.text.startswith("w0 w1 ")
    assert await node.ledger.contracts(1) == []


@pytest.mark.parametrize(
    ("script", "error", "code"),
    [
        (Script(dies_after=3), JobFailedError, "worker_died"),
        (
            Script(refusal=JobRefusedError("too long", code="context_exceeded")),
            PromptTooLongError,
            "context_length_exceeded",
        ),
        (Script(refusal=JobRefusedError("no template", code="input")), InputRefusedError, "input_refused"),
        (Script(refusal=WorkerDiedError("gone", code="worker_died")), JobFailedError, "worker_died"),
        (Script(refusal=ExecutionError("full", code="out_of_memory")), JobFailedError, "out_of_memory"),
    ],
)
async def test_own_job_fails_with_the_workers_reason(
    world: World, script: Script, error: type[Exception], code: str | None
) -> None:
    node = await seller(world, "p", script)
    bought = await buy(node, order(where="local"))
    assert isinstance(bought.error, error) and getattr(bought.error, "code", None) == code


async def test_order_has_the_id_that_it_was_given(world: World) -> None:
    node = await seller(world, "p")
    job_id = JobId(b"i" * 16)
    finished = (await buy(node, replace(order(where="local"), job_id=job_id))).finished
    assert finished.job_id == job_id and node.party.journal.find(job_id.hex())


async def test_own_prompt_is_forgotten_when_the_user_leaves_before_it_runs(world: World) -> None:
    node = await seller(world, "p")
    sink, events = trio.open_memory_channel[JobEvent](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.requester.submit, order(where="local"), sink)
        await events.receive()
        await trio.sleep(1)
        assert node.executor.held
        nursery.cancel_scope.cancel()
    assert not node.executor.held


async def test_own_job_stops_when_the_user_leaves(world: World) -> None:
    node = await seller(world, "p", Script(step_s=1))
    with trio.move_on_after(10):
        await buy(node, order(where="local"))
    assert node.executor.running == 0 and not node.executor.held


async def test_reader_that_leaves_ends_an_own_job_without_a_group_of_errors(world: World) -> None:
    node = await seller(world, "p")
    sink, events = trio.open_memory_channel[JobEvent](math.inf)

    async def read_a_little() -> None:
        for _ in range(4):
            await events.receive()
        events.close()

    world.nursery.start_soon(read_a_little)
    with pytest.raises(trio.BrokenResourceError):
        await node.requester.submit(order(where="local"), sink)


@pytest.mark.slow
async def test_all_books_agree_when_three_requesters_buy_fifty_jobs_from_eight_slots(world: World) -> None:
    provider = await seller(world, "p", Script(step_s=0.02), credit_new_peer=10**6, credit_pool_new=10**7)
    buyers = [await world.node(f"r{number}") for number in range(3)]
    results: list[Bought] = []

    async def one(number: int) -> None:
        path = ("fast", "quote", "auto")[number % 3]
        results.append(await buy(buyers[number // 3 % 3], order(tokens=20 + number, path=path)))

    for buyer in buyers:
        world.introduce(buyer, provider)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    assert sorted(it.finished.tokens_out for it in results) == list(range(20, 70))
    assert provider.executor.running_max == 8
    await trio.sleep(40)
    theirs = {row.contract_id: row for row in await provider.ledger.contracts(100)}
    mine = {row.contract_id: row for buyer in buyers for row in await buyer.ledger.contracts(100)}
    assert theirs.keys() == mine.keys() and len(mine) == 50
    for contract_id, row in mine.items():
        other = theirs[contract_id]
        assert row.state is RequesterState.CLOSED and other.state is ProviderState.CLOSED
        assert row.vouchered == other.vouchered == other.metered
        assert row.tokens_out == other.tokens_out
    spent = [(await buyer.ledger.totals()).spent for buyer in buyers]
    assert (await provider.ledger.totals()).earned == sum(spent)
    assert sum(spent) == sum(it.finished.cost_microcredits for it in results)
    contracted = [event for it in results for event in it.events if isinstance(event, Contracted)]
    assert len(contracted) == 50
