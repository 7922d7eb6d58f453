"""What a provider does with a contract that it has accepted, whoever is on the other side."""

import pytest
import trio

from node.config import MarketSection
from protocol import limits
from protocol.contract import Accept, Cancel
from protocol.framing import AliveFrame, OutputFrame, decode_frame_untrusted
from protocol.offer import Decline
from protocol.receipt import Receipt
from protocol.signed import Signed
from protocol.states import ProviderState, RequesterState
from protocol.task import decode_output_untrusted
from protocol.voucher import Meter
from tests.fakes import Script, ScriptedExecutor
from tests.ledger.fakes import unpaid
from tests.market.rogues import honest_contract, job_line
from tests.market.world import Node, World, buy, order

# One token out costs 1 µc, one in nothing: sums are token counts.
ONE_EACH = MarketSection(price_in=0, price_out=1_000_000, voucher_window_tokens=8)


async def make_pair(
    world: World, script: Script | None = None, *, market: MarketSection | None = None
) -> tuple[Node, Node]:
    provider = await world.node("p", executor=ScriptedExecutor(script=script or Script()), market=market)
    requester = await world.node("r")
    world.introduce(requester, provider)
    return requester, provider


@pytest.mark.parametrize("path", ["fast", "quote"])
async def test_both_ledgers_agree_when_a_job_is_complete(world: World, path: str) -> None:
    requester, provider = await make_pair(world)
    bought = await buy(requester, order(tokens=70, path=path))
    assert bought.finished.tokens_out == 70
    assert bought.text == "".join(f"w{n} " for n in range(70))
    await trio.sleep(10)
    mine, theirs = await requester.only_row(), await provider.only_row()
    assert mine.state is RequesterState.CLOSED and theirs.state is ProviderState.CLOSED
    assert mine.vouchered == theirs.vouchered == theirs.metered == bought.finished.cost_microcredits > 0
    terms = ["ask", "quote"] if path == "quote" else []
    expected = [*terms, "contract", "accept", *["meter", "voucher"] * 3, "receipt", "closing"]
    assert await requester.kinds(mine) == expected
    # The receipt follows the last meter; its voucher comes in behind.
    assert sorted(await provider.kinds(theirs)) == sorted(expected)
    raws = [
        sorted(it.raw for it in await node.messages(row)) for node, row in ((requester, mine), (provider, theirs))
    ]
    assert raws[0] == raws[1]


async def test_provider_keeps_the_fingerprint_of_an_answer_beside_its_contract(world: World) -> None:
    requester, provider = await make_pair(world, Script(fingerprint=b"f" * 512))
    await buy(requester, order(tokens=70))
    await trio.sleep(10)
    contract_id = (await provider.only_row()).contract_id
    assert await provider.ledger.fingerprint(contract_id) == b"f" * 512
    assert await requester.ledger.fingerprint(contract_id) is None


async def test_provider_joins_waiting_pieces_but_never_past_the_window(world: World) -> None:
    requester, provider = await make_pair(world, Script(step_s=0), market=ONE_EACH)
    assert (await buy(requester, order(tokens=50, path="quote"))).finished.tokens_out == 50
    sizes = [len(decode_output_untrusted(frame.data).tokens) for frame in outputs(provider)]
    assert max(sizes) <= 8 and len(sizes) < 50


async def test_provider_shows_life_while_a_prompt_is_read(world: World) -> None:
    requester, provider = await make_pair(world, Script(first_s=35))
    assert (await buy(requester, order())).finished.first_token_ms >= 35_000
    alive = [
        at
        for at, it in provider.sent
        if isinstance(it, bytes) and isinstance(decode_frame_untrusted(it), AliveFrame)
    ]
    assert len(alive) >= 15


async def test_provider_stops_within_a_window_and_is_paid_when_the_user_cancels(world: World) -> None:
    requester, provider = await make_pair(world, Script(step_s=0.1), market=ONE_EACH)
    with trio.move_on_after(5):
        await buy(requester, order(tokens=400, path="quote"))
    await trio.sleep(1)
    assert provider.executor.running == 0 and provider.admission.running == 0
    mine, theirs = await requester.only_row(), await provider.only_row()
    assert mine.state is RequesterState.CANCELLED and theirs.state is ProviderState.CANCELLED
    # One µc a token: all that was delivered is metered, the begun window too.
    assert mine.vouchered == theirs.vouchered == theirs.metered == theirs.tokens_out > 48
    assert (await requester.kinds(mine))[-5:] == ["cancel", "meter", "voucher", "receipt", "closing"]
    assert (await provider.kinds(theirs))[-5:] == ["cancel", "meter", "receipt", "voucher", "closing"]
    await trio.sleep(10)
    assert await unpaid(provider.ledger) == {}


async def test_provider_hears_a_cancel_while_a_whole_answer_waits(world: World) -> None:
    requester, provider = await make_pair(world, Script(step_s=0), market=ONE_EACH)
    provider.ledger.lag_s = 0.05
    with trio.move_on_after(1):
        await buy(requester, order(tokens=2000, path="quote"))
    await trio.sleep(3)
    theirs = await provider.only_row()
    assert theirs.state is ProviderState.CANCELLED
    assert theirs.tokens_out < 400


async def test_provider_is_owed_nothing_when_its_worker_dies(world: World) -> None:
    requester, provider = await make_pair(world, Script(dies_after=20), market=ONE_EACH)
    bought = await buy(requester, order(path="quote"))
    assert bought.error is not None
    await trio.sleep(10)
    theirs, mine = await provider.only_row(), await requester.only_row()
    assert theirs.state is ProviderState.FAILED
    assert theirs.vouchered == mine.vouchered == 16
    assert await unpaid(provider.ledger) == {}


async def test_provider_ends_a_job_when_its_time_is_over(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(hangs_after=3)), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        receipt = await rogue.hear(Receipt)
        assert receipt.message.status == "failed" and receipt.message.cumulative == 0
        assert 59 <= trio.current_time() <= 61
        assert provider.admission.running == 0


async def test_provider_expires_a_contract_when_no_output_starts_in_time(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(hangs_after=0)))
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        await rogue.hear(Receipt)
        assert 29 <= trio.current_time() <= 31
    assert (await provider.only_row()).state is ProviderState.EXPIRED


async def test_provider_pauses_when_credit_is_used_up_and_goes_on_when_paid(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(
            honest_contract(requester, provider, credit=16, voucher_window_tokens=8, tokens_out_max=40)
        )
        await rogue.hear(Accept)
        await trio.sleep(5)
        (job,) = provider.provider.jobs.values()
        assert job.state is ProviderState.PAUSED_UNPAID
        # The credit holds: what is out and unpaid never exceeds it.
        assert job.tokens_out <= 16
        for _ in range(5):
            meter = await rogue.hear(Meter)
            await rogue.pay()
        assert meter.message.final
        receipt = await rogue.hear(Receipt)
        assert receipt.message.status == "complete" and receipt.message.cumulative == 40
        await rogue.close(receipt.message_id, 40)
        await rogue.line.finish()
        await trio.sleep(1)
    assert (await provider.only_row()).state is ProviderState.CLOSED


async def test_provider_gives_up_when_no_voucher_comes_for_twenty_seconds(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, credit=16, voucher_window_tokens=8))
        receipt = await rogue.hear(Receipt)
        assert 20 <= trio.current_time() <= 21
        assert receipt.message.status == "partial"
    await trio.sleep(10)
    theirs = await provider.only_row()
    assert theirs.state is ProviderState.UNPAID and theirs.metered - theirs.vouchered <= 16
    assert provider.admission.credit_left(requester.peer_id, 0) == 100_000 - theirs.metered
    assert await unpaid(provider.ledger) == {requester.peer_id: theirs.metered}


async def test_provider_remembers_a_debt_when_the_closing_never_comes(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, tokens_out_max=8))
        await rogue.hear(Receipt)
        await trio.sleep(limits.CLOSING_WAIT_MS_MAX / 1000 + 10)
    assert (await provider.only_row()).state is ProviderState.UNPAID
    assert await unpaid(provider.ledger) == {requester.peer_id: 8}


@pytest.mark.parametrize(
    "changes",
    [{"cumulative": 9}, {"cumulative": 7}, {"number": 1}, {"meter": 3}, {"contract_id": bytes(32)}],
    ids=["above its meter", "below the promise", "repeated", "of no meter", "of another contract"],
)
async def test_provider_ends_the_job_when_a_second_voucher_is_wrong(world: World, changes: dict[str, int]) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, credit=8, voucher_window_tokens=8))
        await rogue.hear(Meter)
        await rogue.pay()
        await rogue.pay(**changes)
        await trio.sleep(5)
        theirs = await provider.only_row()
        assert theirs.state in (ProviderState.CANCELLED, ProviderState.UNPAID)
        assert theirs.vouchered == 8
        assert provider.executor.running == 0


async def test_provider_ends_the_job_when_vouchers_outnumber_meters(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=1)), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, voucher_window_tokens=8))
        await rogue.hear(Meter)
        for _ in range(50):
            await rogue.pay()
        await trio.sleep(1)
        stored = await provider.kinds(await provider.only_row())
        assert stored.count("voucher") <= 1


async def test_provider_keeps_a_job_for_half_a_minute_when_the_requester_vanishes(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=0.5)), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        await rogue.hear(Accept)
        await trio.sleep(10)
        world.fabric.crash("r")
        await trio.sleep(1)
        (job,) = provider.provider.jobs.values()
        assert job.state is ProviderState.DETACHED
        await trio.sleep(29.5)
        assert provider.executor.running == 0 and provider.admission.running == 0
    theirs = await provider.only_row()
    assert theirs.state is ProviderState.CANCELLED
    assert (await provider.kinds(theirs))[-1] == "receipt"


@pytest.mark.parametrize("frame", [b"\x01garbage", b"", b"\xff", b"\x01" * 20_000])
async def test_provider_stops_when_the_requester_sends_garbage(world: World, frame: bytes) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(step_s=0.5)))
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider))
        await rogue.hear(Accept)
        await rogue.stream.send_frame(frame)
        await trio.sleep(1)
        assert provider.executor.running == 0 and provider.admission.running == 0


async def test_provider_survives_a_worker_that_dies_after_the_last_piece(world: World) -> None:
    provider = await world.node("p", executor=DiesAtTheEnd(), market=ONE_EACH)
    requester = await world.node("r")
    world.introduce(requester, provider)
    assert (await buy(requester, order(tokens=8, path="quote"))).finished.tokens_out == 8
    await trio.sleep(40)
    assert (await provider.only_row()).state is ProviderState.CLOSED


class DiesAtTheEnd(ScriptedExecutor):
    async def generate(self, *args, **settings) -> None:  # type: ignore[no-untyped-def]  # as the base
        await super().generate(*args, **settings)
        from node.errors import WorkerDiedError

        raise WorkerDiedError("too late to matter", code="worker_died")


async def test_provider_frees_everything_when_its_ledger_fails_in_mid_job(world: World) -> None:
    requester, provider = await make_pair(world, Script(step_s=0.5), market=ONE_EACH)

    async def break_later() -> None:
        await trio.sleep(6)
        provider.ledger.broken = True

    world.nursery.start_soon(break_later)
    bought = await buy(requester, order(path="quote"))
    assert bought.error is not None
    assert provider.executor.running == 0 and provider.admission.running == 0
    provider.ledger.broken = False
    theirs = await provider.only_row()
    assert theirs.vouchered == 8
    # The books end it at the next start.
    await world.stop(provider)
    again = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    assert (await again.only_row()).state is ProviderState.FAILED


async def test_contract_is_declined_when_the_first_window_is_not_covered(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(), market=ONE_EACH)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, credit=7, voucher_window_tokens=8))
        assert (await rogue.hear(Decline)).message.code == "credit"


def outputs(node: Node) -> list[OutputFrame]:
    frames = [decode_frame_untrusted(it) for _at, it in node.sent if not isinstance(it, Signed)]
    return [frame for frame in frames if isinstance(frame, OutputFrame)]


async def test_provider_takes_a_cancel_before_the_first_output(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(first_s=30)))
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        contract = honest_contract(requester, provider)
        await rogue.offer(contract)
        await rogue.hear(Accept)
        await rogue.line.tell(requester.party.sign(Cancel(contract_id=contract.message_id, code="user", meter=0)))
        receipt = await rogue.hear(Receipt)
        assert receipt.message.cumulative == 0 and receipt.message.tokens_out == 0
        assert provider.executor.running == 0
