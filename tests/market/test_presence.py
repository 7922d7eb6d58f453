"""A buyer's user leaves: how soon the provider's place is free, whatever the job was doing."""

import math

import pytest
import trio

from node.market.order import JobEvent
from tests.fakes import Script, ScriptedExecutor
from tests.market.world import World, buy, order

GONE_S_MAX = 1.0


@pytest.mark.parametrize(
    ("script", "slots"),
    [(Script(prepare_s=30), 8), (Script(first_s=30), 8), (Script(step_s=0.5), 8), (Script(step_s=0.5), 1)],
    ids=["loading", "reading the prompt", "answering", "queued"],
)
async def test_place_is_free_within_a_second_when_the_user_leaves(
    world: World, script: Script, slots: int
) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(slots=slots, script=script))
    buyer, other = await world.node("r"), await world.node("o")
    for node in (buyer, other):
        world.introduce(node, provider)
    sink, _events = trio.open_memory_channel[JobEvent](math.inf)
    async with trio.open_nursery() as orders:
        if slots == 1:
            orders.start_soon(buy, other, order(tokens=100))
            await trio.sleep(1)
        before = provider.admission.running
        scope = trio.CancelScope()

        async def leave_early() -> None:
            with scope:
                await buyer.requester.submit(order(tokens=100), sink)

        orders.start_soon(leave_early)
        await trio.sleep(2)
        assert provider.admission.running == before + 1
        scope.cancel()
        await trio.sleep(GONE_S_MAX)
        assert provider.admission.running == before
    await trio.sleep(100)
    assert provider.executor.held == set()
