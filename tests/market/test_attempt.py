"""A stream is lost and another one takes its place: no token is lost or doubled, and both books agree."""

import pytest
import trio

from node.errors import StreamLostError
from node.ledger.entries import ContractRow
from node.market.order import Contracted, JobFailedError, PassedOver
from node.market.party import Line
from protocol.contract import Accept, Cancel, Contract
from protocol.framing import JOB_PROTOCOL
from protocol.receipt import Receipt
from protocol.resume import Resume
from protocol.signed import Signed
from protocol.states import ProviderState, RequesterState
from protocol.units import MessageId
from protocol.voucher import Meter
from tests.fakes import Script, ScriptedExecutor
from tests.market.rogues import RogueProvider, RogueRequester, honest_contract, job_line
from tests.market.world import Bought, Node, World, buy, order

SLOW = Script(step_s=0.5)


async def make_pair(world: World, script: Script = SLOW) -> tuple[Node, Node]:
    provider = await world.node("p", executor=ScriptedExecutor(script=script))
    buyer = await world.node("r")
    world.introduce(buyer, provider)
    return buyer, provider


async def undisturbed(world: World, tokens: int) -> str:
    buyer = await world.node("r0")
    world.introduce(buyer, await world.node("p0", executor=ScriptedExecutor(script=SLOW)))
    return (await buy(buyer, order(tokens=tokens))).text


def cut_at(world: World, buyer: Node, provider: Node, *at_s: float) -> None:
    async def cut() -> None:
        began = trio.current_time()
        for after_s in at_s:
            await trio.sleep_until(began + after_s)
            await buyer.network.inner.disconnect(provider.peer_id)

    world.nursery.start_soon(cut)


async def rows_of(buyer: Node, provider: Node) -> tuple[ContractRow, ContractRow]:
    return await buyer.only_row(), await provider.only_row()


def contracts_in(bought: Bought) -> int:
    return sum(isinstance(event, Contracted) for event in bought.events)


@pytest.mark.parametrize(
    "at_s", [(0.2,), (5.0,), (16.0,), (16.01,), (20.0, 21.0, 33.0), (47.0, 47.2, 47.4)], ids=str
)
async def test_answer_goes_on_under_its_contract_when_the_stream_is_lost(
    world: World, at_s: tuple[float, ...]
) -> None:
    expected = await undisturbed(world, 100)
    buyer, provider = await make_pair(world)
    cut_at(world, buyer, provider, *at_s)
    bought = await buy(buyer, order(tokens=100))
    assert bought.text == expected and bought.finished.tokens_out == 100 and contracts_in(bought) == 1
    await trio.sleep(10)
    ours, theirs = await rows_of(buyer, provider)
    assert ours.state is RequesterState.CLOSED and theirs.state is ProviderState.CLOSED
    assert ours.vouchered == theirs.vouchered == theirs.metered == bought.finished.cost_microcredits


async def test_answer_goes_on_when_the_stream_is_lost_while_a_prompt_is_read(world: World) -> None:
    buyer, provider = await make_pair(world, Script(first_s=8.0))
    cut_at(world, buyer, provider, 3.0)
    bought = await buy(buyer, order(tokens=10))
    assert bought.finished.tokens_out == 10 and contracts_in(bought) == 1


async def test_requester_learns_of_an_acceptance_that_was_lost_on_the_way(world: World) -> None:
    buyer, provider = await make_pair(world)
    provider.ledger.lag_s = 0.2
    # The acceptance is written for 0.2 s; the stream breaks meanwhile.
    cut_at(world, buyer, provider, 0.3)
    bought = await buy(buyer, order(tokens=40))
    assert bought.finished.tokens_out == 40
    assert (await buyer.only_row()).state is RequesterState.CLOSED


async def test_closing_arrives_later_when_the_provider_cannot_hear_it_at_once(world: World) -> None:
    buyer, provider = await make_pair(world)
    bought: list[Bought] = []

    async def shop() -> None:
        bought.append(await buy(buyer, order(tokens=20)))

    # The receipt is there after ten seconds; the closing is on its way when the line goes dead.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop)
        with trio.fail_after(60):
            while "closing" not in buyer.sent_kinds():  # noqa: ASYNC110 - virtual time, and no event tells of it
                await trio.sleep(0.01)
        await buyer.network.inner.disconnect(provider.peer_id)
    assert bought[0].finished.tokens_out == 20
    await trio.sleep(2)
    ours, theirs = await rows_of(buyer, provider)
    assert ours.state is RequesterState.CLOSED and theirs.state is ProviderState.CLOSED


async def test_job_of_a_requester_that_was_restarted_is_cancelled_long_before_its_hold_ends(world: World) -> None:
    buyer, provider = await make_pair(world)
    scope = trio.CancelScope()

    async def shop() -> None:
        with scope:
            await buy(buyer, order(tokens=100))

    world.nursery.start_soon(shop)
    await trio.sleep(20)
    world.fabric.crash("r")
    # What a killed process would still do in its cleanup reaches nobody.
    scope.cancel()
    await world.stop(buyer)
    again = await world.node("r")
    world.introduce(again, provider)
    await trio.sleep(3)
    assert provider.executor.running == 0
    ours, theirs = await rows_of(again, provider)
    assert theirs.state is ProviderState.CANCELLED and ours.vouchered == theirs.vouchered
    assert "cancel" in await provider.kinds(theirs)


async def test_next_provider_goes_on_at_once_when_the_first_was_restarted(world: World) -> None:
    buyer, provider = await make_pair(world)
    other = await world.node("q", executor=ScriptedExecutor(script=SLOW))
    bought: list[Bought] = []

    async def shop() -> None:
        bought.append(await buy(buyer, order(tokens=100)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop)
        await trio.sleep(20)
        world.introduce(buyer, other)
        world.fabric.crash("p")
        await world.stop(provider)
        again = await world.node("p", executor=ScriptedExecutor(script=SLOW))
    assert bought[0].finished.tokens_out == 100 and bought[0].finished.peer_id == other.peer_id
    await trio.sleep(60)
    rows = await buyer.ledger.contracts(10)
    (theirs,) = await again.ledger.contracts(10)
    assert {row.state for row in rows} == {RequesterState.LOST, RequesterState.CLOSED}
    (lost,) = (row for row in rows if row.state is RequesterState.LOST)
    assert theirs.state is ProviderState.FAILED and theirs.vouchered == lost.vouchered


async def test_provider_is_given_up_when_nobody_is_left_and_it_stays_away(world: World) -> None:
    buyer, provider = await make_pair(world)
    began = trio.current_time()

    async def cut() -> None:
        await trio.sleep(20)
        world.fabric.crash("p")
        await world.stop(provider)

    world.nursery.start_soon(cut)
    bought = await buy(buyer, order(tokens=100))
    assert isinstance(bought.error, JobFailedError) and "gone" in str(bought.error)
    # Tried as long as a provider keeps a job: it might have been the way to it.
    assert 45 <= trio.current_time() - began <= 50
    assert (await buyer.only_row()).state is RequesterState.LOST


# What a provider answers to others than its honest requester.


async def resume_on(rogue: RogueRequester, contract_id: MessageId, **changes: object) -> Resume:
    """Say where we claim to stand and return the answer."""
    fields: dict[str, object] = {"standing": "open", "frames": 0, "meter": 0, "voucher": 0, **changes}
    await rogue.line.tell(rogue._node.party.sign(Resume(contract_id=contract_id, **fields)))  # type: ignore[arg-type]
    answer: Signed[Resume] = await rogue.line.hear_untrusted(Resume)
    return answer.message


async def test_provider_knows_no_contract_of_another_peer(world: World) -> None:
    buyer, provider = await make_pair(world)
    thief = await world.node("thief")
    async with job_line(buyer, provider) as rogue:
        contract = honest_contract(buyer, provider)
        await rogue.offer(contract)
        await rogue.hear(Accept)
        async with job_line(thief, provider) as other:
            assert (await resume_on(other, contract.message_id)).standing == "unknown"
            assert (await resume_on_new(thief, provider, MessageId(bytes(32)))).standing == "unknown"


async def resume_on_new(buyer: Node, provider: Node, contract_id: MessageId, **changes: object) -> Resume:
    async with job_line(buyer, provider) as rogue:
        return await resume_on(rogue, contract_id, **changes)


@pytest.mark.parametrize("claims", [{"frames": 99}, {"meter": 9}, {"standing": "unknown"}], ids=str)
async def test_provider_ends_the_job_when_a_resume_claims_what_cannot_be(
    world: World, claims: dict[str, object]
) -> None:
    buyer, provider = await make_pair(world)
    async with job_line(buyer, provider) as rogue:
        contract = honest_contract(buyer, provider)
        await rogue.offer(contract)
        await rogue.hear(Accept)
        await trio.sleep(3)
        with pytest.raises(StreamLostError):
            await resume_on_new(buyer, provider, contract.message_id, **claims)
        await trio.sleep(1)
    assert (await provider.only_row()).state is ProviderState.CANCELLED
    assert provider.executor.running == 0


async def test_provider_ends_the_job_when_a_resume_lacks_what_was_paid(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    async with job_line(buyer, provider) as rogue:
        contract = honest_contract(buyer, provider)
        await rogue.offer(contract)
        with trio.move_on_after(2.5):
            await rogue.hear(Receipt)
        await rogue.pay()
        await trio.sleep(0.1)
        with pytest.raises(StreamLostError):
            await resume_on_new(buyer, provider, contract.message_id, voucher=1)
        await trio.sleep(1)
    row = await provider.only_row()
    assert row.state is ProviderState.CANCELLED and row.vouchered > 0


async def test_last_voucher_is_taken_from_a_requester_that_comes_back_too_late(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    contract = honest_contract(buyer, provider)
    async with job_line(buyer, provider) as rogue:
        await rogue.offer(contract)
        with trio.move_on_after(2.5):
            await rogue.hear(Receipt)
        meters = rogue.meters
    await trio.sleep(60)
    before = await provider.only_row()
    assert before.vouchered == 0 < before.metered
    async with job_line(buyer, provider) as late:
        late.contract, late.meters = contract, meters
        assert (await resume_on(late, contract.message_id, standing="over")).standing == "over"
        await late.pay()
        await late.line.finish()
        assert await late.line.receive_untrusted() is None
    assert (await provider.only_row()).vouchered == meters[-1].cumulative


async def test_second_stream_takes_the_place_of_one_that_the_provider_thinks_alive(world: World) -> None:
    buyer, provider = await make_pair(world)
    async with job_line(buyer, provider) as first:
        contract = honest_contract(buyer, provider)
        await first.offer(contract)
        await first.hear(Accept)
        await trio.sleep(3)
        async with await buyer.network.inner.open_stream(provider.peer_id, JOB_PROTOCOL) as stream:
            second = RogueRequester(buyer, stream)
            answer = await resume_on(second, contract.message_id)
            assert answer.standing == "open" and answer.frames > 0
            second.contract = contract
            receipt = await second.hear(Receipt)
            # All frames from the first on, those included that the first stream had taken already.
            assert second.outputs == receipt.message.tokens_out
            await second.pay()
            await second.close(receipt.message_id, receipt.message.cumulative)
            await trio.sleep(1)
    assert (await provider.only_row()).state is ProviderState.CLOSED


async def test_passed_over_says_why_the_stream_was_lost_first(world: World) -> None:
    buyer, provider = await make_pair(world)
    other = await world.node("q", executor=ScriptedExecutor(script=SLOW))
    world.introduce(buyer, other)
    bought: list[Bought] = []

    async def shop() -> None:
        bought.append(await buy(buyer, order(tokens=60)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop)
        await trio.sleep(10)
        serving = next(node for node in (provider, other) if node.executor.running)
        world.fabric.crash("p" if serving is provider else "q")
        await world.stop(serving)
    (passed,) = (event for event in bought[0].events if isinstance(event, PassedOver))
    assert passed.code == "unreachable" and bought[0].finished.tokens_out == 60


async def test_voucher_that_comes_over_both_streams_is_taken_once(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    async with job_line(buyer, provider) as first:
        contract = honest_contract(buyer, provider)
        await first.offer(contract)
        await first.hear(Meter)
        async with await buyer.network.inner.open_stream(provider.peer_id, JOB_PROTOCOL) as stream:
            second = RogueRequester(buyer, stream)
            second.contract, second.meters = contract, list(first.meters)
            assert (await resume_on(second, contract.message_id, meter=1, voucher=1)).voucher == 0
            # It was on its way all the time; the requester thinks it lost and brings it again.
            await first.pay()
            await trio.sleep(0.1)
            await second.pay()
            receipt = await second.hear(Receipt)
            await second.pay()
            await second.close(receipt.message_id, receipt.message.cumulative)
            await trio.sleep(1)
    row = await provider.only_row()
    assert row.state is ProviderState.CLOSED and row.vouchered == row.metered


async def test_provider_hears_a_cancel_that_was_said_just_before_the_stream_was_lost(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    async with job_line(buyer, provider) as rogue:
        contract = honest_contract(buyer, provider)
        await rogue.offer(contract)
        await rogue.hear(Accept)
        await trio.sleep(1)
        # The first meter is being written when both arrive, and then cannot be sent.
        provider.ledger.lag_s = 2.0
        await trio.sleep(0.8)
        await rogue.line.tell(buyer.party.sign(Cancel(contract_id=contract.message_id, code="user", meter=0)))
        await buyer.network.inner.disconnect(provider.peer_id)
        await trio.sleep(10)
    provider.ledger.lag_s = 0.0
    row = await provider.only_row()
    assert row.state is ProviderState.CANCELLED
    assert {"cancel", "receipt"} <= set(await provider.kinds(row))


async def test_provider_that_drops_every_stream_is_given_up(world: World) -> None:
    resumed = 0
    took_on: list[Signed[Contract]] = []

    async def drops(node: Node, line: Line) -> None:
        nonlocal resumed
        rogue = RogueProvider(node, line)
        if not took_on:
            took_on.append(await rogue.take())
            await rogue.accept()
            await rogue.output(1)
            return
        resume = await line.hear_untrusted(Resume)
        if resume.message.standing == "open":
            resumed += 1
            answer = Resume(contract_id=resume.message.contract_id, standing="open", frames=1, meter=0, voucher=0)
            await line.tell(node.party.sign(answer))

    rogue_node = await world.node("p", executor=ScriptedExecutor(script=SLOW), rogue=drops)
    buyer = await world.node("r")
    world.introduce(buyer, rogue_node)
    with trio.fail_after(120):
        bought = await buy(buyer, order(tokens=60))
    assert isinstance(bought.error, JobFailedError)
    assert 20 < resumed < 40
    # While somebody else could go on, it gets one chance.
    resumed = 0
    took_on.clear()
    other = await world.node("q", executor=ScriptedExecutor(script=Script(first_s=0.1)))
    second = await world.node("r2")
    world.introduce(second, rogue_node)
    world.introduce(second, other)
    bought = await buy(second, order(tokens=60))
    assert bought.finished.peer_id == other.peer_id and resumed == 1


async def test_voucher_reaches_the_provider_when_the_user_leaves_while_the_job_is_resumed(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    cut = False
    world.fabric.wire.is_cut = lambda source, _target: cut and source == provider.peer_id
    scope = trio.CancelScope()

    async def shop() -> None:
        with scope:
            await buy(buyer, order(tokens=200))

    world.nursery.start_soon(shop)
    await trio.sleep(5)
    cut = True
    await trio.sleep(1)
    # The provider is frozen for us: the cancel goes out, and nothing comes back in time.
    scope.cancel()
    await trio.sleep(4)
    cut = False
    await trio.sleep(60)
    ours, theirs = await rows_of(buyer, provider)
    assert ours.state is RequesterState.CANCELLED and theirs.state is ProviderState.CANCELLED
    assert ours.vouchered == theirs.vouchered


async def test_provider_learns_that_the_user_left_before_the_answer_to_the_offer(world: World) -> None:
    buyer, provider = await make_pair(world, Script(prepare_s=1.0, step_s=0.5))
    scope = trio.CancelScope()

    async def shop() -> None:
        with scope:
            await buy(buyer, order(tokens=200))

    world.nursery.start_soon(shop)
    await trio.sleep(0.5)
    scope.cancel()
    await trio.sleep(4)
    assert provider.executor.running == 0
    assert not provider.provider.jobs
