"""Tasks of items on the market: metered in units, gone on with at the next item, or begun anew."""

import math
import struct
from dataclasses import replace

import pytest
import trio

from node.config import MarketSection
from node.market.order import JobFailedError, Order, Output, PassedOver, WrongTaskError
from node.market.party import Line
from protocol.framing import OutputFrame
from protocol.tasks.classify import ClassifyInput, Image
from protocol.tasks.embed import EmbedInput, EmbedOutput
from protocol.tasks.forward import ForwardInput
from protocol.tasks.registry import ItemInput, encode_task_output, task_of
from protocol.tasks.vad import VadInput
from scripts.spec.items import tensor_file
from tests.fakes import Script, ScriptedExecutor, scripted_outputs, served_model
from tests.market.rogues import RogueProvider
from tests.market.world import Bought, Node, World, buy, order

TEXTS = EmbedInput(texts=tuple("x" * (1 + n) for n in range(50)))
TENSORS = ForwardInput(tensors=tensor_file(("a", "U8", (100_000,), bytes(100_000))), output_bytes_max=128 * 1024)
INPUTS: list[ItemInput] = [
    TEXTS,
    ClassifyInput(images=tuple(Image(width=n, height=1, rgb=bytes(3 * n)) for n in range(1, 5))),
    VadInput(samples=bytes(2 * 512 * 40)),
    TENSORS,
]


async def seller(
    world: World, name: str, task_input: ItemInput, script: Script | None = None, **settings: int
) -> Node:
    model = served_model(task=task_of(task_input), context_tokens=1 << 18)
    executor = ScriptedExecutor(served=(model,), script=script or Script())
    return await world.node(name, executor=executor, market=MarketSection(**settings))


def wanted(task_input: ItemInput) -> Order:
    return replace(order(), task_input=task_input, tokens_out_max=task_input.units_out)


def results(bought: Bought) -> list[object]:
    return [event.result for event in bought.events if isinstance(event, Output)]


@pytest.mark.parametrize("task_input", INPUTS, ids=task_of)
async def test_items_are_bought_and_paid_in_units(world: World, task_input: ItemInput) -> None:
    provider, buyer = await seller(world, "p", task_input), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, wanted(task_input))
    assert results(bought) == scripted_outputs(task_input)
    assert bought.finished.tokens_in == task_input.units_in_max
    assert bought.finished.tokens_out == sum(output.units for output in scripted_outputs(task_input))
    assert bought.finished.cost_microcredits > 0


@pytest.mark.parametrize("task_input", INPUTS, ids=task_of)
async def test_reader_gets_every_item_once_when_a_provider_dies(world: World, task_input: ItemInput) -> None:
    # The cheaper one is asked first.
    dying = await seller(world, "dying", task_input, Script(dies_after=2), price_out=1)
    other, buyer = await seller(world, "other", task_input), await world.node("r")
    world.introduce(buyer, dying, other)
    bought = await buy(buyer, wanted(task_input))
    assert [event.peer_id for event in bought.events if isinstance(event, PassedOver)] == [dying.peer_id]
    assert results(bought) == scripted_outputs(task_input)
    assert bought.finished.receipt_id is not None


async def test_vector_of_no_numbers_is_neither_passed_on_nor_paid(world: World) -> None:
    frame = encode_task_output(EmbedOutput(vector=struct.pack("<2f", 1.0, 2.0)))
    data = frame.replace(struct.pack("<f", 2.0), struct.pack("<f", math.nan))
    assert data != frame

    async def serve(node: Node, line: Line) -> None:
        rogue = RogueProvider(node, line)
        await rogue.take()
        await rogue.accept(tokens_in=4)
        await line.send(OutputFrame(0, data))
        await trio.sleep(30)

    model = served_model(task="embed", context_tokens=1 << 18)
    rogue = await world.node("rogue", executor=ScriptedExecutor(served=(model,)), rogue=serve)
    buyer = await world.node("r")
    world.introduce(buyer, rogue)
    bought = await buy(buyer, wanted(TEXTS))
    assert isinstance(bought.error, JobFailedError) and "finite" in str(bought.error)
    assert results(bought) == [] and (await buyer.only_row()).vouchered == 0


async def test_order_is_refused_when_the_model_does_another_task(world: World) -> None:
    provider, buyer = await seller(world, "p", TEXTS), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, wanted(VadInput(samples=struct.pack("<h", 1))))
    assert isinstance(bought.error, WrongTaskError) and "offered for embed, not for vad" in str(bought.error)


async def test_tensors_run_through_a_model_that_is_offered_for_another_task(world: World) -> None:
    provider, buyer = await seller(world, "p", TEXTS), await world.node("r")
    world.introduce(buyer, provider)
    bought = await buy(buyer, wanted(TENSORS))
    assert results(bought) == scripted_outputs(TENSORS)
    assert not any(isinstance(event, PassedOver) for event in bought.events)
