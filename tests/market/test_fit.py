"""What a peer is told when a job does not fit, and that what it is offered instead is then taken."""

from dataclasses import replace

import pytest

from node.errors import ExecutionError, JobRefusedError
from node.execution.interface import Prompt, ServedModel
from node.market.admission import Refused
from node.market.fit import check_fits, refused_by
from node.market.order import NobodyWillingError, PassedOver
from protocol.contract import Accept, Contract
from protocol.errors import DeclineCode
from protocol.offer import Decline, Quote
from protocol.signed import Signed
from protocol.tasks.registry import TaskInput
from protocol.units import ModelId
from tests.fakes import ScriptedExecutor, served_model
from tests.market.world import Node, World, buy, order

WHOLE = replace(served_model(), fixed_bytes=1_000, cache_bytes_per_token=10)
CUT = replace(WHOLE, context_tokens=200, is_context_cut=True)


class Narrow(ScriptedExecutor):
    """Counts prompt and answer as the engine does."""

    async def prepare(
        self, job_key: str, model_id: ModelId, task_input: TaskInput, tokens_out_max: int, *, scope: bytes = b""
    ) -> Prompt:
        prompt = await super().prepare(job_key, model_id, task_input, tokens_out_max, scope=scope)
        limit = self.served[0].context_tokens
        if prompt.tokens_in + tokens_out_max > limit:
            await self.release(prompt)
            fits = limit - prompt.tokens_in
            raise JobRefusedError("too long", code="context_exceeded", tokens_out_max=fits)
        return prompt


def said(node: Node, *kinds: type) -> list[object]:
    return [it.message for _at, it in node.sent if isinstance(it, Signed) and isinstance(it.message, kinds)]


@pytest.mark.parametrize(("path", "tokens", "offers"), [("fast", 198, [196]), ("quote", 300, [199, 196])])
async def test_counter_offer_is_accepted_when_others_took_the_memory(
    world: World, path: str, tokens: int, offers: list[int]
) -> None:
    executor = Narrow(served=(WHOLE,))
    provider, buyer = await world.node("p", executor=executor), await world.node("r")
    world.introduce(buyer, provider)
    executor.served = (CUT,)
    bought = await buy(buyer, order(tokens=tokens, path=path))
    assert bought.finished.tokens_out == 196 and bought.finished.finish == "length"
    declines = [it for it in said(provider, Decline) if isinstance(it, Decline)]
    assert [(it.code, it.tokens_max) for it in declines] == [(DeclineCode.MEMORY, offer) for offer in offers]
    (accept,) = (it for it in said(provider, Accept) if isinstance(it, Accept))
    # Four tokens of prompt, 196 of answer.
    assert accept.memory_bytes == 1_000 + 10 * 200
    last = said(buyer, Contract)[-1]
    assert isinstance(last, Contract) and last.tokens_out_max == 196
    assert all(isinstance(it, Quote) and it.memory_bytes == 3_000 for it in said(provider, Quote))
    await world.settle()


async def test_whole_answer_of_another_peer_comes_before_a_counter_offer(world: World) -> None:
    near = await world.node("near", executor=Narrow(served=(WHOLE,)))
    far = await world.node("far", executor=Narrow(served=(replace(WHOLE, tokens_per_s_milli=1),)))
    buyer = await world.node("r")
    world.introduce(buyer, near, far)
    near.executor.served = (CUT,)
    bought = await buy(buyer, order(tokens=300))
    assert bought.finished.peer_id == far.peer_id and bought.finished.tokens_out == 300
    assert [it.code for it in bought.events if isinstance(it, PassedOver)] == [DeclineCode.MEMORY]


@pytest.mark.parametrize(("lacks", "code"), [("memory", DeclineCode.MEMORY), ("jobs", DeclineCode.BUSY)])
def test_model_that_cannot_be_loaded_now_is_declined(lacks: str, code: DeclineCode) -> None:
    check_fits(WHOLE, 1)
    with pytest.raises(Refused) as refused:
        check_fits(replace(WHOLE, lacks=lacks), 1)  # type: ignore[arg-type]
    assert refused.value.code is code and refused.value.tokens_max is None


async def test_order_fails_when_there_is_no_room_for_the_model(world: World) -> None:
    executor = ScriptedExecutor(served=(WHOLE,))
    provider, buyer = await world.node("p", executor=executor), await world.node("r")
    world.introduce(buyer, provider)
    executor.served = (replace(WHOLE, lacks="memory"),)
    bought = await buy(buyer, order())
    assert isinstance(bought.error, NobodyWillingError)
    assert [it.code for it in bought.error.refusals] == [DeclineCode.MEMORY]


@pytest.mark.parametrize(
    ("fault", "model", "code"),
    [
        (JobRefusedError("long", code="context_exceeded", tokens_out_max=5), WHOLE, DeclineCode.CONTEXT_EXCEEDED),
        (JobRefusedError("long", code="context_exceeded", tokens_out_max=5), CUT, DeclineCode.MEMORY),
        (JobRefusedError("no", code="input"), WHOLE, DeclineCode.INPUT),
        (ExecutionError("in the way", code="model_busy"), WHOLE, DeclineCode.BUSY),
        (ExecutionError("too big", code="memory"), WHOLE, DeclineCode.MEMORY),
        (ExecutionError("gone", code="worker_died"), WHOLE, DeclineCode.FAILED),
        (ExecutionError("FileNotFoundError: '/home/me/x'", code="load"), WHOLE, DeclineCode.FAILED),
    ],
)
def test_fault_of_the_worker_is_told_to_a_peer(
    fault: ExecutionError, model: ServedModel, code: DeclineCode
) -> None:
    refused = refused_by(fault, model)
    assert refused.code is code
    assert "/home" not in str(refused)
    assert refused.tokens_max == (fault.tokens_out_max if isinstance(fault, JobRefusedError) else None)
