"""A party that signs two messages for one place is refused as before, and convicted by what it signed."""

import trio

from node.config import MarketSection
from node.market.party import Line
from protocol.equivocation import verify_proof_untrusted
from protocol.voucher import Meter
from tests.fakes import Script, ScriptedExecutor
from tests.market.rogues import RogueProvider, honest_contract, job_line
from tests.market.world import Node, World, buy, order

ONE_EACH = MarketSection(price_in=0, price_out=1_000_000, voucher_window_tokens=8)


async def pair(world: World) -> tuple[Node, Node]:
    executor = ScriptedExecutor(script=Script(step_s=0.1))
    provider = await world.node("p", executor=executor, market=ONE_EACH)
    requester = await world.node("r")
    world.introduce(requester, provider)
    return requester, provider


async def test_provider_keeps_proof_when_a_requester_signs_a_voucher_twice_with_two_sums(world: World) -> None:
    requester, provider = await pair(world)
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        await rogue.hear(Meter)
        await rogue.pay()
        await rogue.pay(number=1, cumulative=1)
        await trio.sleep(5)
    count, (kept,) = await provider.ledger.proofs(10)
    proof = verify_proof_untrusted(kept.proof)
    assert (count, proof.slot.kind, proof.offender) == (1, "voucher", requester.peer_id)
    row = await provider.only_row()
    # The refused voucher changes no sum and is no entry: the evidence of the contract still holds.
    assert row.vouchered == 8 and (await provider.kinds(row)).count("voucher") == 1


async def test_provider_keeps_no_proof_when_a_requester_repeats_itself(world: World) -> None:
    requester, provider = await pair(world)
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        await rogue.hear(Meter)
        await rogue.pay()
        await rogue.pay(number=1)
        await trio.sleep(5)
    assert await provider.ledger.proofs(10) == (0, [])


async def test_requester_keeps_proof_when_a_provider_signs_two_meters_of_one_number(world: World) -> None:
    async def meter_twice(node: Node, line: Line) -> None:
        rogue = RogueProvider(node, line)
        await rogue.take()
        await rogue.accept()
        await rogue.output(4)
        await rogue.meter()
        await rogue.voucher()
        await rogue.output(4)
        await rogue.meter(number=1)
        await rogue.heard()

    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH, rogue=meter_twice)
    requester = await world.node("r")
    world.introduce(requester, provider)
    await buy(requester, order(tokens=40))
    count, (kept,) = await requester.ledger.proofs(10)
    proof = verify_proof_untrusted(kept.proof)
    assert (count, proof.slot.kind, proof.offender) == (1, "meter", provider.peer_id)
