"""What a provider takes and what it declines, and that a refused peer costs it nothing."""

import msgspec
import pytest
import trio

from node.config import MarketSection
from node.errors import ExecutionError, JobRefusedError
from node.execution.worker_state import WorkerState
from node.market.admission import Closed, Place
from node.market.order import JobFailedError
from node.market.party import Line
from protocol.contract import Accept, Contract
from protocol.framing import QUOTE_PROTOCOL, InputFrame
from protocol.offer import Ask, Decline, Quote
from protocol.signed import Signed, sign
from protocol.states import ProviderState
from protocol.task import GenerateInput, encode_input
from protocol.units import MessageId, Microcredits, NetworkId, UnixMs
from tests.fakes import Script, ScriptedExecutor, served_model, signer_of, worker_state
from tests.market.rogues import DATA, SALT, honest_contract, job_line
from tests.market.world import Node, World, buy, order


async def make_pair(world: World, executor: ScriptedExecutor | None = None, **market: int) -> tuple[Node, Node]:
    """Return (requester, provider)."""
    provider = await world.node("p", executor=executor or ScriptedExecutor(), market=MarketSection(**market))
    return await world.node("r"), provider


async def answer_to(buyer: Node, seller: Node, contract: Signed[Contract]) -> Accept | Decline:
    """Offer a contract and return what comes back; then the stream is given up."""
    async with job_line(buyer, seller) as rogue:
        await rogue.offer(contract)
        with trio.fail_after(30):
            return (await rogue.line.hear_untrusted(Accept, Decline)).message  # type: ignore[type-var]


def ask_of(buyer: Node, seller: Node, **changes: object) -> Signed[Ask]:
    now_ms = buyer.party.now_ms()
    ask = Ask(
        job_id=buyer.party.entropy(16),
        provider=seller.peer_id,
        sent_at_ms=now_ms,
        end_by_ms=now_ms + 60_000,
        task="generate",
        model_id=seller.executor.served[0].model_id,
        input_bytes=len(DATA),
        tokens_in_max=100,
        tokens_out_max=64,
        price_max=1_000_000,
    )
    return buyer.party.sign(msgspec.structs.replace(ask, **changes))


async def quote_to(buyer: Node, seller: Node, ask: Signed[Ask]) -> Signed[Quote] | Signed[Decline]:
    await buyer.network.inner.dial(seller.network.addresses[0])
    async with await buyer.network.inner.open_stream(seller.peer_id, QUOTE_PROTOCOL) as stream:
        line = Line(stream, buyer.party)
        await line.tell(ask)
        with trio.fail_after(30):
            return await line.hear_untrusted(Quote, Decline)  # type: ignore[type-var, return-value]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_id": bytes(32)}, "model_unknown"),
        ({"tokens_out_max": 4096}, "context_exceeded"),
        ({"dtype": "bf16"}, "profile"),
        ({"prices": served_model}, "price"),
        ({"price_max": 1}, "price"),
        ({"voucher_window_tokens": 33}, "credit"),
        ({"credit": 0}, "credit"),
        ({"tokens_in_max": 3}, "input"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
async def test_contract_is_declined_when_its_terms_do_not_suit(
    world: World, changes: dict[str, object], code: str
) -> None:
    requester, provider = await make_pair(world)
    if "prices" in changes:
        changes = {"prices": msgspec.structs.replace(provider.provider.prices, tokens_out=799_999)}
    answer = await answer_to(requester, provider, honest_contract(requester, provider, **changes))
    assert isinstance(answer, Decline) and answer.code == code
    assert await provider.ledger.contracts(1) == []
    assert provider.admission.running == 0 and provider.admission.credit_left(requester.peer_id, 0) == 100_000


async def test_decline_says_what_would_be_taken_when_the_price_is_too_low(world: World) -> None:
    requester, provider = await make_pair(world)
    low = await answer_to(requester, provider, honest_contract(requester, provider, price_max=10))
    assert isinstance(low, Decline) and low.price_min is not None
    again = honest_contract(requester, provider, price_max=low.price_min, credit=low.price_min)
    assert isinstance(await answer_to(requester, provider, again), Accept)


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (JobRefusedError("it has 5000 tokens, 4096 fit", code="context_exceeded"), "context_exceeded"),
        (JobRefusedError("no", code="model_unknown"), "model_unknown"),
        (JobRefusedError("no", code="input"), "input"),
        (ExecutionError("gone", code="worker_died"), "failed"),
    ],
)
async def test_contract_is_declined_when_the_worker_refuses(
    world: World, refusal: ExecutionError, code: str
) -> None:
    requester, provider = await make_pair(world, ScriptedExecutor(script=Script(refusal=refusal)))
    answer = await answer_to(requester, provider, honest_contract(requester, provider))
    told = str(refusal) if isinstance(refusal, JobRefusedError) else refusal.code
    assert isinstance(answer, Decline) and answer.code == code and told in answer.message


class Restarting(ScriptedExecutor):
    def workers(self) -> tuple[WorkerState, ...]:
        return (worker_state(life="restarting", models=frozenset({served_model().model_id})),)


async def test_order_waits_for_a_worker_that_is_being_started_again(world: World) -> None:
    executor = Restarting()
    requester, provider = await make_pair(world, executor)
    contract = honest_contract(requester, provider)
    unknown = honest_contract(requester, provider, model_id=bytes(32))
    executor.served = ()
    answer = await answer_to(requester, provider, contract)
    assert isinstance(answer, Decline) and answer.code == "busy" and answer.retry_after_ms
    other = await answer_to(requester, provider, unknown)
    assert isinstance(other, Decline) and other.code == "model_unknown"


async def test_place_is_given_back_when_a_worker_hangs_over_the_prompt(world: World) -> None:
    requester, provider = await make_pair(world, ScriptedExecutor(script=Script(prepare_s=float("inf"))))
    answer = await answer_to(requester, provider, honest_contract(requester, provider))
    assert isinstance(answer, Decline) and answer.code == "expired"
    assert trio.current_time() <= 6 and provider.admission.running == 0


async def test_contract_is_declined_when_all_places_are_taken(world: World) -> None:
    slow = ScriptedExecutor(slots=1, script=Script(first_s=20))
    requester, provider = await make_pair(world, slow, queue_max=1)
    async with job_line(requester, provider) as one, job_line(requester, provider) as two:
        for rogue in (one, two):
            await rogue.offer(honest_contract(requester, provider))
            await rogue.hear(Accept)
        answer = await answer_to(requester, provider, honest_contract(requester, provider))
        assert isinstance(answer, Decline) and answer.code == "busy" and answer.retry_after_ms == 1_000


async def test_contract_is_declined_when_the_peers_credit_is_used_up(world: World) -> None:
    slow = ScriptedExecutor(script=Script(first_s=20))
    requester, provider = await make_pair(world, slow, credit_new_peer=100)
    async with job_line(requester, provider) as one:
        first = honest_contract(requester, provider)
        await one.offer(first)
        await one.hear(Accept)
        answer = await answer_to(requester, provider, honest_contract(requester, provider))
        assert isinstance(answer, Decline) and answer.code == "credit"
        assert f"{100 - first.message.credit} µc are left" in answer.message
        other = await world.node("other")
        assert isinstance(await answer_to(other, provider, honest_contract(other, provider)), Accept)


async def test_everything_is_declined_when_the_node_drains(world: World) -> None:
    requester, provider = await make_pair(world)
    provider.admission.closed = Closed(message="not now", retry_after_ms=7)
    answer = await answer_to(requester, provider, honest_contract(requester, provider))
    assert isinstance(answer, Decline) and answer.code == "draining"
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    assert isinstance(quote.message, Decline) and quote.message.code == "draining"
    assert (quote.message.message, quote.message.retry_after_ms) == ("not now", 7)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_id": bytes(32)}, "model_unknown"),
        ({"tokens_out_max": 5000}, "context_exceeded"),
        ({"price_max": 3}, "price"),
        ({"sent_at_ms": UnixMs(0)}, "expired"),
        ({"end_by_ms": UnixMs(0)}, "expired"),
    ],
)
async def test_ask_is_declined_when_it_does_not_suit(world: World, changes: dict[str, object], code: str) -> None:
    requester, provider = await make_pair(world)
    ask = ask_of(requester, provider, **changes)
    answer = await quote_to(requester, provider, ask)
    assert isinstance(answer.message, Decline) and answer.message.code == code
    assert answer.message.refers_to == ask.message_id
    assert provider.admission.slots_free(trio.current_time()) == 8


async def test_quote_holds_a_place_until_it_lapses(world: World) -> None:
    requester, provider = await make_pair(world, ScriptedExecutor(slots=1), queue_max=0)
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    assert isinstance(quote.message, Quote)
    other = await world.node("other")
    # Another peer can use neither the place nor the quote.
    stolen = honest_contract(other, provider, answers=quote.message_id)
    answer = await answer_to(other, provider, stolen)
    assert isinstance(answer, Decline) and answer.code == "busy"
    mine = honest_contract(requester, provider, answers=quote.message_id)
    assert isinstance(await answer_to(requester, provider, mine), Accept)


async def test_quote_holds_nothing_any_more_when_its_time_is_over(world: World) -> None:
    slow = ScriptedExecutor(slots=1, script=Script(first_s=20))
    requester, provider = await make_pair(world, slow, queue_max=0)
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    await trio.sleep(16)
    other = await world.node("other")
    async with job_line(other, provider) as rogue:
        await rogue.offer(honest_contract(other, provider))
        await rogue.hear(Accept)
        late = honest_contract(requester, provider, answers=quote.message_id)
        answer = await answer_to(requester, provider, late)
        assert isinstance(answer, Decline) and answer.code == "busy"


async def test_quote_serves_one_contract_when_it_is_used_twice(world: World) -> None:
    slow = ScriptedExecutor(slots=1, script=Script(first_s=20))
    requester, provider = await make_pair(world, slow, queue_max=0)
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    async with job_line(requester, provider) as rogue:
        await rogue.offer(honest_contract(requester, provider, answers=quote.message_id))
        await rogue.hear(Accept)
        again = honest_contract(requester, provider, answers=quote.message_id)
        answer = await answer_to(requester, provider, again)
        assert isinstance(answer, Decline) and answer.code == "busy"


async def test_contract_runs_once_when_it_is_sent_twice_at_once(world: World) -> None:
    requester, provider = await make_pair(world, ScriptedExecutor(script=Script(first_s=2)))
    contract = honest_contract(requester, provider)
    async with job_line(requester, provider) as one:
        await one.offer(contract)
        await one.hear(Accept)
        answer = await answer_to(requester, provider, contract)
        assert isinstance(answer, Decline) and answer.code == "expired"
        assert len(provider.provider.jobs) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_contract_is_declined_when_it_has_run_before(world: World, restart: bool) -> None:
    requester, provider = await make_pair(world)
    contract = honest_contract(requester, provider)
    assert isinstance(await answer_to(requester, provider, contract), Accept)
    await trio.sleep(10)
    if restart:
        await world.stop(provider)
        provider = await world.node("p", executor=ScriptedExecutor())
    answer = await answer_to(requester, provider, contract)
    assert isinstance(answer, Decline) and answer.code == "expired"


FOREIGN = NetworkId(b"x" * 32)


@pytest.mark.parametrize("kind", ["other network", "other signer", "other provider", "lapsed", "future", "type"])
async def test_provider_says_nothing_when_a_contract_is_not_meant_for_it(world: World, kind: str) -> None:
    requester, provider = await make_pair(world)
    good = honest_contract(requester, provider)
    now_ms = provider.party.now_ms()
    ages = {"lapsed": now_ms - 70_000, "future": now_ms + 70_000}
    shift = ages[kind] - good.message.made_at_ms if kind in ages else 0
    times = {
        name: getattr(good.message, name) + shift
        for name in ("made_at_ms", "accept_by_ms", "start_by_ms", "end_by_ms")
    }
    match kind:
        case "other network":
            contract = sign(good.message, network=FOREIGN, signer=requester.party.signer)
        case "other signer":
            contract = sign(good.message, network=requester.party.network, signer=signer_of("thief"))
        case "other provider":
            contract = honest_contract(requester, provider, provider=bytes(31) + b"\x01")
        case "type":
            contract = ask_of(requester, provider)  # type: ignore[assignment]
        case _:
            contract = honest_contract(requester, provider, **times)
    async with job_line(requester, provider) as rogue:
        await rogue.line.tell(contract)
        with pytest.raises(Exception, match="broke"):
            await rogue.line.receive_untrusted()
    assert not provider.sent and provider.admission.running == 0


INPUTS = {
    "other text": [SALT, encode_input(GenerateInput(prompt="tell me a stori"))],
    "other salt": [b"t" * 16, DATA],
    "short salt": [SALT[:15], DATA],
    "too long": [SALT, DATA + b"x"],
    "empty piece": [SALT, b"", DATA],
}


@pytest.mark.parametrize("pieces", INPUTS.values(), ids=INPUTS.keys())
async def test_nothing_is_held_when_the_input_is_not_the_one_agreed(world: World, pieces: list[bytes]) -> None:
    requester, provider = await make_pair(world)
    async with job_line(requester, provider) as rogue:
        await rogue.line.tell(honest_contract(requester, provider))
        with pytest.raises(Exception, match="broke"):  # noqa: PT012 - the loss shows at a send or at the read
            for number, piece in enumerate(pieces):
                await rogue.line.send(InputFrame(number, piece))
            await rogue.line.receive_untrusted()
    assert not provider.sent and not provider.executor.held and provider.admission.running == 0
    assert provider.admission.credit_left(requester.peer_id, 0) == 100_000


async def test_nothing_is_held_when_the_input_never_comes(world: World) -> None:
    requester, provider = await make_pair(world)
    async with job_line(requester, provider) as rogue:
        await rogue.line.tell(honest_contract(requester, provider))
        await trio.sleep(1)
        assert provider.admission.running == 1
        await trio.sleep(10)
        assert provider.admission.running == 0


async def test_stream_ends_when_a_peer_says_nothing(world: World) -> None:
    requester, provider = await make_pair(world)
    async with job_line(requester, provider) as rogue:
        with pytest.raises(Exception, match="broke"):
            await rogue.line.receive_untrusted()
    assert 10 <= trio.current_time() <= 11


async def test_contract_is_declined_when_the_ledger_cannot_be_written(world: World) -> None:
    requester, provider = await make_pair(world)
    provider.ledger.broken = True
    answer = await answer_to(requester, provider, honest_contract(requester, provider))
    assert isinstance(answer, Decline) and answer.code == "failed"
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    assert isinstance(quote.message, Decline) and quote.message.code == "failed"
    # A quote that was never sent holds no place.
    assert provider.admission.slots_free(trio.current_time()) == 8


async def test_change_is_told_when_the_last_slot_goes_and_when_it_comes_back(world: World) -> None:
    requester, provider = await make_pair(world, ScriptedExecutor(slots=1))
    assert isinstance(await answer_to(requester, provider, honest_contract(requester, provider)), Accept)
    await trio.sleep(10)
    assert provider.changes == 2


async def test_job_runs_when_the_clocks_are_half_a_minute_apart(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor(script=Script(first_s=10)), skew_ms=40_000)
    requester = await world.node("r")
    async with job_line(requester, provider) as rogue:
        contract = honest_contract(requester, provider, start_by_ms=requester.party.now_ms() + 20_000)
        await rogue.offer(contract)
        await rogue.hear(Accept)
        await trio.sleep(15)
        assert rogue.contract.message_id in provider.provider.jobs
    await trio.sleep(1)
    row = await provider.only_row()
    assert row.tokens_out > 0


async def test_quote_is_declined_with_what_is_open_when_no_first_window_fits(world: World) -> None:
    requester, provider = await make_pair(world, credit_new_peer=60)
    provider.admission.take(
        MessageId(bytes(32)),
        Place(peer_id=requester.peer_id, reserve=Microcredits(50)),
        quote_id=MessageId(bytes(32)),
        now=trio.current_time(),
    )
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    assert isinstance(quote.message, Decline) and quote.message.code == "credit"
    assert "0 µc are open and 50 µc reserved of 60 µc; settle what is open" in quote.message.message
    provider.admission.settle(MessageId(bytes(32)), unpaid=0)


async def test_promises_use_a_peers_credit_up_until_they_are_settled_or_forgiven(world: World) -> None:
    requester, provider = await make_pair(world)
    world.introduce(requester, provider)
    limit = provider.market.credit_new_peer
    await buy(requester, order(tokens=40))
    await trio.sleep(1)
    promised = (await provider.only_row()).vouchered
    assert (
        promised > 0 and provider.admission.credit_left(requester.peer_id, trio.current_time()) == limit - promised
    )
    await world.stop(provider)
    provider = await world.node("p", executor=ScriptedExecutor())
    assert provider.admission.credit_left(requester.peer_id, trio.current_time()) == limit - promised
    provider.admission.settled(requester.peer_id, promised)
    assert provider.admission.credit_left(requester.peer_id, trio.current_time()) == limit + promised // 2


async def test_debt_is_forgiven_after_its_days_while_the_node_runs(world: World) -> None:
    requester, provider = await make_pair(world, forgive_after_days=2)
    world.introduce(requester, provider)
    await buy(requester, order(tokens=40))
    left = provider.admission.credit_left(requester.peer_id, trio.current_time())
    await trio.sleep(2 * 24 * 3_600 - 60)
    assert provider.admission.credit_left(requester.peer_id, trio.current_time()) == left
    await trio.sleep(3_700)
    assert (
        provider.admission.credit_left(requester.peer_id, trio.current_time()) == provider.market.credit_new_peer
    )


async def test_answer_is_cut_when_promises_reach_the_peers_limit(world: World) -> None:
    requester, provider = await make_pair(world, credit_new_peer=70, voucher_window_tokens=4, price_in=0)
    world.introduce(requester, provider)
    bought = await buy(requester, order(tokens=400, path="quote"))
    assert isinstance(bought.error, JobFailedError)
    row = await provider.only_row()
    assert row.state is ProviderState.UNPAID and row.metered == row.vouchered
    # 0.8 µc a token: the next window of four would have gone beyond.
    assert 70 - 4 <= row.metered <= 70
    assert row.tokens_out == len(bought.text.split())


async def test_quote_keeps_its_prices_when_they_rise_before_it_lapses(world: World) -> None:
    requester, provider = await make_pair(world, price_out=100)
    quote = await quote_to(requester, provider, ask_of(requester, provider))
    assert isinstance(quote.message, Quote)
    provider.provider.reconfigure(MarketSection(price_out=5_000_000, voucher_window_tokens=1))
    terms = {"prices": quote.message.prices, "price_max": quote.message.price_max}
    under_quote = honest_contract(requester, provider, answers=quote.message_id, **terms)
    without = honest_contract(requester, provider, **terms)
    answer = await answer_to(requester, provider, without)
    assert isinstance(answer, Decline) and answer.code == "price"
    assert isinstance(await answer_to(requester, provider, under_quote), Accept)


async def test_job_that_is_handed_back_goes_on_at_another_provider(world: World) -> None:
    slow = ScriptedExecutor(script=Script(step_s=1))
    first, second = await world.node("p1", executor=slow), await world.node("p2", executor=ScriptedExecutor())
    buyer = await world.node("r")
    world.introduce(buyer, first)

    async def close() -> None:
        await trio.sleep(5.5)
        world.introduce(buyer, second)
        first.admission.closed = Closed(message="closed")
        assert await first.provider.hand_back() == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        bought = await buy(buyer, order(tokens=20))
    assert bought.finished.tokens_out == 20
    (row,) = await first.ledger.contracts(9)
    assert row.state is ProviderState.FAILED and 0 < row.tokens_out < 20
    assert not first.executor.held and not first.admission.running
    assert await first.provider.hand_back() == 0
