"""What a requester does with one provider, whoever that is: it recounts everything and pays for nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from node.market.order import Contracted, JobFailedError, Output, PassedOver
from node.market.party import Line
from protocol.contract import Cancel
from protocol.offer import Decline
from protocol.receipt import Closing
from protocol.states import RequesterState
from protocol.voucher import Voucher
from tests.fakes import Script, ScriptedExecutor, served_model
from tests.market.rogues import RogueProvider
from tests.market.world import Node, World, buy, order
from tests.test_metrics import samples

Part = Callable[[RogueProvider], Awaitable[None]]


async def make_buyer(world: World, part: Part) -> Node:
    """Return a requester that knows a rogue, and prefers it to others by its speed."""

    async def serve(node: Node, line: Line) -> None:
        await part(RogueProvider(node, line))

    executor = ScriptedExecutor(served=(served_model(tokens_per_s_milli=200_000),))
    rogue, buyer = await world.node("rogue", executor=executor, rogue=serve), await world.node("r")
    world.introduce(buyer, rogue)
    return buyer


async def add_honest(world: World, buyer: Node) -> Node:
    node = await world.node("honest", executor=ScriptedExecutor())
    world.introduce(buyer, node)
    return node


# A lie about one window of 32 tokens.
LIES: dict[str, dict[str, Any]] = {
    "tokens out": {"tokens_out": 33},
    "tokens in": {"tokens_in": 5},
    "price": {"cumulative": 28},
    "time": {"duration_ms": 60_000},
    "chain": {"output_hash": bytes(32)},
    "number": {"number": 2},
    "contract": {"contract_id": bytes(32)},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_requester_disputes_and_pays_nothing_more_when_a_meter_lies(
    world: World, lie: dict[str, Any]
) -> None:
    heard: list[Any] = []

    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32)
        await rogue.meter()
        heard.append(await rogue.voucher())
        await rogue.output(32)
        await rogue.meter(**({"number": 3} if "number" in lie else lie))
        heard.append(await rogue.heard())

    buyer = await make_buyer(world, part)
    bought = await buy(buyer, order(tokens=100))
    assert isinstance(bought.error, JobFailedError) and bought.error.code == "broke_protocol"
    await trio.sleep(1)
    row = await buyer.only_row()
    assert row.state is RequesterState.DISPUTED and row.vouchered == heard[0].cumulative
    assert isinstance(heard[1], Cancel) and heard[1].code == "meter"


async def test_next_candidate_is_tried_when_a_meter_lies_before_any_token(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.meter()
        await rogue.heard()

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    # An honest meter over nothing is paid; the silence after it is what fails.
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == honest.peer_id


@pytest.mark.parametrize(
    "changes",
    [
        {"cumulative": 5_000},
        {"tokens_out": 33},
        {"status": "complete", "finish": "length"},
        {"output_hash": bytes(32)},
    ],
)
async def test_requester_closes_nothing_when_a_receipt_is_wrong(world: World, changes: dict[str, Any]) -> None:
    heard: list[Any] = []

    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32)
        await rogue.meter()
        await rogue.voucher()
        await rogue.receipt("partial", **changes)
        heard.append(await rogue.heard())

    buyer = await make_buyer(world, part)
    assert isinstance((await buy(buyer, order(tokens=100))).error, JobFailedError)
    await trio.sleep(1)
    assert (await buyer.only_row()).state is RequesterState.DISPUTED
    assert not isinstance(heard[0], Closing)
    counted = samples(buyer.party.metrics)
    verdicts = {
        labels[1]: value for (name, labels), value in counted.items() if name == "souk_verifications_total"
    }
    assert verdicts.pop("ok") == 0 and sum(verdicts.values()) == 1


async def test_answer_is_kept_when_the_provider_vanishes_right_after_its_receipt(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32, "stop")
        await rogue.meter(final=True)
        await rogue.voucher()
        await rogue.receipt()
        world.fabric.crash("rogue")

    buyer = await make_buyer(world, part)
    bought = await buy(buyer, order(tokens=100))
    assert bought.finished.tokens_out == 32
    assert (await buyer.only_row()).state is RequesterState.CLOSED


async def test_partial_receipt_is_kept_when_the_stream_is_lost_in_mid_answer(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32)
        await rogue.meter()
        await rogue.voucher()
        await rogue.output(5)

    buyer = await make_buyer(world, part)
    bought = await buy(buyer, order(tokens=100))
    assert isinstance(bought.error, JobFailedError) and bought.error.code == "unreachable"
    row = await buyer.only_row()
    assert row.state is RequesterState.LOST and row.tokens_out == 37
    assert await buyer.kinds(row) == ["contract", "accept", "meter", "voucher", "cancel"]


async def test_next_candidate_waits_for_accept_by_when_a_provider_is_silent(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await trio.sleep(30)

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == honest.peer_id
    assert contract_times(buyer)[1] - contract_times(buyer)[0] >= 5


@pytest.mark.parametrize("way", ["lost", "garbage", "other contract"])
async def test_next_candidate_waits_for_accept_by_when_an_offer_may_still_be_taken(world: World, way: str) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        if way == "garbage":
            await rogue._line._stream.send_frame(b"\xffgarbage")
        elif way == "other contract":
            await rogue.accept(contract_id=bytes(32))
        if way != "lost":
            await trio.sleep(30)

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == honest.peer_id
    assert contract_times(buyer)[1] - contract_times(buyer)[0] >= 5


async def test_next_candidate_is_tried_when_a_provider_is_silent_before_its_first_token(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await trio.sleep(60)

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == honest.peer_id
    passed = [event for event in bought.events if isinstance(event, PassedOver)]
    assert [it.code for it in passed] == ["silent"] and 6 <= bought.took_s <= 8
    assert len([event for event in bought.events if isinstance(event, Contracted)]) == 2


async def test_next_candidate_is_tried_at_once_when_a_provider_declines(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        contract = await rogue.take()
        await rogue.tell(Decline(refers_to=contract.message_id, code="busy", message="no", retry_after_ms=9))  # type: ignore[arg-type]

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    bought = await buy(buyer, order())
    assert bought.finished.peer_id == honest.peer_id and bought.took_s < 2


@pytest.mark.parametrize("changes", [{"tokens_in": 1 << 20}, {"contract_id": bytes(32)}])
async def test_requester_refuses_an_accept_that_does_not_form_its_contract(
    world: World, changes: dict[str, Any]
) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept(**changes)
        await trio.sleep(30)

    buyer = await make_buyer(world, part)
    bought = await buy(buyer, order())
    assert isinstance(bought.error, JobFailedError) and bought.error.code == "broke_protocol"
    assert (await buyer.only_row()).vouchered == 0


async def test_requester_gives_up_when_output_runs_on_without_a_meter(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        for _ in range(20):
            await rogue.output(32)
        await rogue.heard()

    buyer = await make_buyer(world, part)
    bought = await buy(buyer, order(tokens=1000))
    assert isinstance(bought.error, JobFailedError) and bought.error.code == "broke_protocol"
    assert (await buyer.only_row()).vouchered == 0


async def test_vouchers_leave_no_gap_when_the_user_cancels_while_one_is_stored(world: World) -> None:
    heard: list[Any] = []

    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32)
        await rogue.meter()
        await trio.sleep(0.15)  # the acceptance is stored, the meter is being
        cancelling.cancel()
        while not isinstance(message := await rogue.heard(), Cancel):
            heard.append(message)
        await rogue.receipt("partial")
        heard.append(await rogue.heard())

    cancelling = trio.CancelScope()
    buyer = await make_buyer(world, part)
    buyer.ledger.lag_s = 0.1
    with cancelling:
        await buy(buyer, order(tokens=1000))
    await trio.sleep(1)
    row = await buyer.only_row()
    assert row.state is RequesterState.CANCELLED
    assert [it.number for it in heard if isinstance(it, Voucher)] == [1]
    assert [it.cumulative for it in heard] == [row.vouchered] * 2


async def test_requester_tells_its_provider_when_the_reader_of_the_answer_is_gone(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=0.1)))
    buyer = await world.node("r")
    world.introduce(buyer, provider)
    sink, events = trio.open_memory_channel[Any](10)

    async def read_a_little() -> None:
        for _ in range(5):
            await events.receive()
        events.close()

    world.nursery.start_soon(read_a_little)
    with pytest.raises(trio.BrokenResourceError):
        await buyer.requester.submit(order(tokens=500), sink)
    assert "cancel" in buyer.sent_kinds()
    await trio.sleep(1)
    assert provider.executor.running == 0


def contract_times(buyer: Node) -> list[float]:
    return [at for at, it in buyer.sent if not isinstance(it, bytes) and it.envelope.kind == "contract"]


async def test_answer_goes_on_at_another_provider_when_one_dies_in_mid_answer(world: World) -> None:
    async def part(rogue: RogueProvider) -> None:
        await rogue.take()
        await rogue.accept()
        await rogue.output(32)
        await rogue.meter()
        await rogue.voucher()
        await rogue.output(5)

    buyer = await make_buyer(world, part)
    honest = await add_honest(world, buyer)
    bought = await buy(buyer, order(tokens=100))
    tokens = [token for event in bought.events if isinstance(event, Output) for token in event.tokens]
    assert bought.finished.peer_id == honest.peer_id and len(bought.finished.continued) == 1
    # The scripted executor numbers tokens by position: none is lost, none comes twice.
    assert tokens == [*range(32), *range(5), *range(37, 100)]
    await trio.sleep(10)
    rows = await buyer.ledger.contracts(10)
    assert {row.state for row in rows} == {RequesterState.LOST, RequesterState.CLOSED}
    assert sum(row.vouchered for row in rows) == bought.finished.cost_microcredits
    assert (await honest.only_row()).vouchered == max(row.vouchered for row in rows)
