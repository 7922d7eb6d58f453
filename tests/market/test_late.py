"""What a requester brings after the job is over: taken once, in order, counted, and no room for anything else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from node.config import MarketSection
from node.errors import StreamLostError
from protocol.contract import Cancel, Contract
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed
from protocol.states import ProviderState
from protocol.voucher import Meter
from tests.fakes import Script, ScriptedExecutor
from tests.market.rogues import RogueRequester, honest_contract, job_line
from tests.market.test_attempt import resume_on
from tests.market.world import Node, World

ONE_EACH = MarketSection(price_in=0, price_out=1_000_000, voucher_window_tokens=8)


async def make_pair(world: World, script: Script) -> tuple[Node, Node]:
    provider = await world.node("p", executor=ScriptedExecutor(script=script), market=ONE_EACH)
    return await world.node("r"), provider


@asynccontextmanager
async def late_line(
    buyer: Node, provider: Node, contract: Signed[Contract], meters: list[Meter]
) -> AsyncIterator[RogueRequester]:
    async with job_line(buyer, provider) as late:
        late.contract, late.meters = contract, meters
        assert (await resume_on(late, contract.message_id, standing="over")).standing == "over"
        yield late


async def end_of(late: RogueRequester) -> None:
    await late.line.finish()
    assert await late.line.receive_untrusted() is None


async def left_unpaid(buyer: Node, provider: Node) -> tuple[Signed[Contract], list[Meter], Signed[Receipt]]:
    """Take what comes, pay nothing, and go."""
    contract = honest_contract(buyer, provider, voucher_window_tokens=8)
    async with job_line(buyer, provider) as rogue:
        await rogue.offer(contract)
        receipt = await rogue.hear(Receipt)
    await trio.sleep(60)
    return contract, rogue.meters, receipt


async def test_late_voucher_for_a_failed_job_counts_as_exposure_as_it_does_after_a_restart(world: World) -> None:
    buyer, provider = await make_pair(world, Script(dies_after=20))
    contract, meters, _receipt = await left_unpaid(buyer, provider)
    assert (await provider.only_row()).state is ProviderState.FAILED
    before = provider.admission.credit_left(buyer.peer_id, trio.current_time())
    async with late_line(buyer, provider, contract, meters) as late:
        await late.pay()
        await end_of(late)
    promised = meters[-1].cumulative
    left = provider.admission.credit_left(buyer.peer_id, trio.current_time())
    assert promised > 0 and left == before - promised
    standings = await provider.ledger.standings(provider.party.now_ms(), forgive_after_days=0)
    assert sum(owed for _at, owed in standings.sold[buyer.peer_id].owed) == promised


async def test_late_voucher_adds_nothing_to_what_was_counted_as_unpaid(world: World) -> None:
    buyer, provider = await make_pair(world, Script())
    contract, meters, _receipt = await left_unpaid(buyer, provider)
    before = provider.admission.credit_left(buyer.peer_id, trio.current_time())
    async with late_line(buyer, provider, contract, meters) as late:
        await late.pay()
        await end_of(late)
    assert provider.admission.credit_left(buyer.peer_id, trio.current_time()) == before


async def test_nothing_is_taken_behind_a_closing_because_the_evidence_would_not_hold(world: World) -> None:
    buyer, provider = await make_pair(world, Script())
    contract, meters, receipt = await left_unpaid(buyer, provider)
    async with late_line(buyer, provider, contract, meters) as late:
        await late.close(receipt.message_id, 0)
        await late.close(receipt.message_id, 0)
        await late.pay()
        with pytest.raises(StreamLostError):
            await end_of(late)
    async with late_line(buyer, provider, contract, meters) as late:
        await late.pay()
        with pytest.raises(StreamLostError):
            await end_of(late)
    async with late_line(buyer, provider, contract, meters) as late:
        # What it brought before is no fault: it may not have heard that it arrived.
        await late.close(receipt.message_id, 0)
        await end_of(late)
    row = await provider.only_row()
    assert row.vouchered == 0 and (await provider.kinds(row)).count("closing") == 1


async def test_second_verdict_convicts_its_signer_and_is_no_entry(world: World) -> None:
    buyer, provider = await make_pair(world, Script())
    contract, meters, receipt = await left_unpaid(buyer, provider)
    for verdict in ("partial", "bad"):
        async with late_line(buyer, provider, contract, meters) as late:
            closing = Closing(
                contract_id=contract.message_id, receipt_id=receipt.message_id, verdict="partial", cumulative=0
            )
            await late.line.tell(buyer.party.sign(msgspec.structs.replace(closing, verdict=verdict)))
            await late.line.finish()
            with trio.move_on_after(5):
                try:
                    await late.line.receive_untrusted()
                except StreamLostError:
                    assert verdict == "bad"
    assert (await provider.kinds(await provider.only_row())).count("closing") == 1
    assert (await provider.ledger.proofs(10))[0] == 1


async def test_farewell_keeps_one_cancel_and_none_of_another_contract(world: World) -> None:
    buyer, provider = await make_pair(world, Script(step_s=0.05))
    contract = honest_contract(buyer, provider, voucher_window_tokens=8)
    async with job_line(buyer, provider) as rogue:
        await rogue.offer(contract)
        await rogue.hear(Meter)
        cancel = Cancel(contract_id=contract.message_id, code="user", meter=1)
        await rogue.line.tell(buyer.party.sign(cancel))
        await rogue.hear(Receipt)
        await rogue.line.tell(buyer.party.sign(msgspec.structs.replace(cancel, contract_id=bytes(32))))
        for meter in range(5):
            await rogue.line.tell(buyer.party.sign(msgspec.structs.replace(cancel, meter=meter)))
        await trio.sleep(1)
    row = await provider.only_row()
    assert row.state is ProviderState.CANCELLED
    assert (await provider.kinds(row)).count("cancel") == 1


async def test_stranger_does_not_keep_a_requester_from_settling_a_contract(world: World) -> None:
    buyer, provider = await make_pair(world, Script())
    thief = await world.node("thief")
    contract, meters, _receipt = await left_unpaid(buyer, provider)
    provider.ledger.lag_s = 1.0
    async with job_line(thief, provider) as other, trio.open_nursery() as nursery:
        nursery.start_soon(resume_on, other, contract.message_id)
        await trio.sleep(0.5)
        async with late_line(buyer, provider, contract, meters) as late:
            await late.pay()
            await end_of(late)
    assert (await provider.only_row()).vouchered == meters[-1].cumulative
