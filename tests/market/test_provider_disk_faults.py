"""A disk that refuses ends no node: nothing new is begun, what runs is handed back, and all goes on by itself."""

import pytest
import trio

from node.config import MarketSection
from node.errors import LedgerDiskError
from protocol.states import ProviderState, is_final
from protocol.voucher import Meter
from tests.fakes import Script, ScriptedExecutor
from tests.market.rogues import honest_contract, job_line
from tests.market.test_provider import answer_to, ask_of, quote_to
from tests.market.world import Node, World, buy, order

ONE_EACH = MarketSection(price_in=0, price_out=1_000_000, voucher_window_tokens=8)
BACK_S = 60.0
"""Longer than the ledger waits before it tries a disk again."""


def refuse(node: Node, refuses: bool) -> None:
    """Make SQLite itself refuse every write, as on a file system that became read-only."""
    node.ledger._store.db.execute(f"PRAGMA query_only={int(refuses)}")


async def disk_fails(node: Node) -> None:
    """Let a node find out: by a posting that nobody else waits for."""
    refuse(node, True)
    with pytest.raises(LedgerDiskError):
        await node.ledger.post(row=(await node.ledger.contracts(1))[0])


async def sellers(world: World, *names: str) -> list[Node]:
    slow = Script(step_s=0.5)
    made = []
    for name in names:
        executor = ScriptedExecutor(script=slow)
        made.append(await world.node(name, executor=executor, market=MarketSection(price_out=1)))
    return made


async def test_answer_goes_on_elsewhere_when_the_providers_disk_refuses_in_mid_stream(world: World) -> None:
    first, second = await sellers(world, "p1", "p2")
    buyer = await world.node("r")
    world.introduce(buyer, first, second)
    undisturbed = await buy(buyer, order(tokens=64))
    assert undisturbed.finished.tokens_out == 64

    async def break_in_mid_stream() -> None:
        await trio.sleep(6)
        (serving,) = [node for node in (first, second) if node.provider.jobs]
        refuse(serving, True)
        await trio.sleep(30)
        # Asked now it declines, with a word for machines and a time after which to ask again.
        other = await world.node("r2")
        answer = await answer_to(other, serving, honest_contract(other, serving))
        assert answer.code == "failed" and answer.retry_after_ms == 15_000  # type: ignore[union-attr]
        quote = await quote_to(other, serving, ask_of(other, serving))
        assert quote.message.code == "failed"  # type: ignore[union-attr]
        assert serving.own_advert._slots_free() == 0
        refuse(serving, False)

    world.nursery.start_soon(break_in_mid_stream)
    bought = await buy(buyer, order(tokens=64))
    assert bought.text == undisturbed.text and bought.finished.tokens_out == 64
    assert len(bought.finished.continued) == 1
    await trio.sleep(BACK_S)
    # Both ended without a restart, and the cut one leaves no debt.
    for node in (first, second):
        rows = await node.ledger.contracts(10)
        assert all(is_final(it.state) for it in rows)
        node.ledger.check_writable()
        assert node.own_advert._slots_free() == 8
    states = [it.state for node in (first, second) for it in await node.ledger.contracts(10)]
    assert states.count(ProviderState.FAILED) == 1
    again = await buy(buyer, order(tokens=64))
    assert again.text == undisturbed.text


async def test_order_is_refused_at_once_while_our_own_disk_refuses(world: World) -> None:
    (seller,) = await sellers(world, "p")
    buyer = await world.node("r")
    world.introduce(buyer, seller)
    await buy(buyer, order(tokens=8))
    await disk_fails(buyer)
    for _ in range(3):
        bought = await buy(buyer, order(tokens=8))
        assert isinstance(bought.error, LedgerDiskError) and bought.took_s == 0
        assert "make the disk that holds it writable" in str(bought.error)
    refuse(buyer, False)
    await trio.sleep(BACK_S)
    world.introduce(buyer, seller)
    assert (await buy(buyer, order(tokens=8))).finished.tokens_out == 8


async def test_own_devices_answer_while_the_disk_refuses(world: World) -> None:
    (node,) = await sellers(world, "p")
    buyer = await world.node("r")
    world.introduce(buyer, node)
    await buy(buyer, order(tokens=8))
    await disk_fails(node)
    local = await buy(node, order(tokens=8, where="local"))
    assert local.error is None
    refuse(node, False)
    await trio.sleep(BACK_S)


async def test_disk_is_tried_less_and_less_often_while_it_refuses(world: World) -> None:
    (node,) = await sellers(world, "p")
    buyer = await world.node("r")
    world.introduce(buyer, node)
    await buy(buyer, order(tokens=8))
    await disk_fails(node)
    await trio.sleep(600)
    # At 1, 3, 7, 15 s, then every 15 s.
    assert 40 <= node.ledger.health.failures <= 46
    refuse(node, False)
    await trio.sleep(BACK_S)
    assert node.ledger.health.fault is None


async def test_contract_ends_when_the_disk_refuses_the_proof_against_its_requester(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=0.05)), market=ONE_EACH)
    buyer = await world.node("r")
    async with job_line(buyer, provider) as rogue:
        await rogue.offer(honest_contract(buyer, provider, voucher_window_tokens=8))
        await rogue.hear(Meter)
        await rogue.pay()
        rogue._vouchers -= 1
        await trio.sleep(0.1)
        refuse(provider, True)
        await rogue.pay(cumulative=1)
        await trio.sleep(0.1)
        refuse(provider, False)
        await trio.sleep(BACK_S)
    assert is_final((await provider.only_row()).state) and provider.executor.running == 0
