"""What a requester puts at risk: bounded for each provider and for all, and told to the user."""

from contextlib import ExitStack
from random import Random

import pytest

from node.config import MarketSection
from node.ledger.standing import Standing, Standings
from node.market.order import NobodyWillingError
from node.market.purchase import AnswerLog, AttemptFailedError
from node.market.spending import Spending
from protocol.units import Microcredits, PeerId, UnixMs
from tests.fakes import Script, ScriptedExecutor, signer_of
from tests.market.world import World, buy, order

P, Q = signer_of("p").peer_id, signer_of("q").peer_id
MARKET = MarketSection(spend_new_peer=100, spend_peer_max=150, spend_pool_new=180, earned_percent=50)
SCHEDULES = 300


class NoAnswerError(Exception):
    pass


def spend(spending: Spending, peer: PeerId, promised: int, *, well: bool, price: int = 100) -> None:
    """Make one contract, promise a sum for it, and end it well or not."""
    answer_log = AnswerLog()
    try:
        with spending.at_risk(peer, Microcredits(price), answer_log):
            answer_log.spent += promised
            if not well:
                raise NoAnswerError
    except NoAnswerError:
        pass


def test_price_is_at_risk_while_a_contract_is_open_and_nothing_after_it_ended_without_a_promise() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    with spending.at_risk(P, Microcredits(70), AnswerLog()):
        assert spending.room(P) == 30 and spending.room(Q) == 100
    assert spending.room(P) == 100


def test_promise_stays_at_risk_when_its_answer_did_not_end_well() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    spend(spending, P, 60, well=False)
    assert spending.room(P) == 40


def test_answer_that_ended_well_raises_the_limit_up_to_its_maximum() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    spend(spending, P, 60, well=True)
    assert spending.room(P) == 130
    spend(spending, P, 100, well=True)
    assert spending.room(P) == 150


def test_only_what_this_contract_promised_counts_when_the_order_had_one_before() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    answer_log = AnswerLog(spent=1_000)
    with spending.at_risk(P, Microcredits(50), answer_log):
        answer_log.spent += 10
    assert spending.room(P) == 105


def test_provider_is_refused_with_the_sums_when_its_limit_does_not_cover_the_price() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    spend(spending, P, 60, well=False)
    with pytest.raises(AttemptFailedError, match="60 µc are open and 0 µc reserved of 100 µc") as caught:
        spend(spending, P, 0, well=True, price=41)
    assert caught.value.code == "spend_limit"
    assert spending.room(P) == 40


def test_risk_of_an_earlier_run_counts() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    bought = Standing(settled=Microcredits(40), paid=Microcredits(0), owed=((UnixMs(0), Microcredits(30)),))
    spending.remember(Standings(read_at_ms=UnixMs(0), sold={}, bought={P: bought}))
    assert spending.room(P) == 120 - 30


def test_requester_never_risks_more_than_both_bounds_whatever_providers_do() -> None:
    reached = 0.0
    for seed in range(SCHEDULES):
        rng = Random(seed)
        spending = Spending(MARKET, clock=lambda: 0.0)
        peers = [PeerId(rng.randbytes(32)) for _ in range(rng.randint(1, 10))]
        lost, well = dict.fromkeys(peers, 0), dict.fromkeys(peers, 0)
        for _ in range(40):
            peer, going_well = rng.choice(peers), rng.random() < 0.6
            room = spending.room(peer)
            price = rng.choice((room, rng.randint(0, 120)))
            promised = rng.choice((price, rng.randint(0, price)))
            try:
                spend(spending, peer, promised, well=going_well, price=price)
            except AttemptFailedError:
                assert price > room
                continue
            (well if going_well else lost)[peer] += promised
            for each in peers:
                assert lost[each] <= min(150, 100 + well[each] // 2), f"seed {seed}"
            bound = 180 + sum(well.values()) / 2
            assert sum(lost.values()) <= bound, f"seed {seed}"
            reached = max(reached, sum(lost.values()) / bound)
    assert reached == 1.0


def test_open_contracts_share_the_pool_of_all_providers() -> None:
    spending = Spending(MARKET, clock=lambda: 0.0)
    with ExitStack() as open_contracts:
        open_contracts.enter_context(spending.at_risk(P, Microcredits(100), AnswerLog()))
        open_contracts.enter_context(spending.at_risk(Q, Microcredits(80), AnswerLog()))
        with pytest.raises(AttemptFailedError, match="all peers together have 180 of 180 µc"):
            spend(spending, signer_of("third").peer_id, 0, well=True, price=1)


async def test_user_is_told_when_every_provider_would_be_too_much_at_risk(world: World) -> None:
    provider = await world.node("p", executor=ScriptedExecutor())
    requester = await world.node("r", market=MarketSection(spend_new_peer=5))
    world.introduce(requester, provider)
    bought = await buy(requester, order(tokens=40))
    assert isinstance(bought.error, NobodyWillingError)
    (refusal,) = bought.error.refusals
    assert refusal.code == "spend_limit" and "market.spend_new_peer" in refusal.message
    assert await provider.ledger.contracts(1) == [], "nothing was offered"


@pytest.mark.parametrize("dies_after", [None, 20])
async def test_restarted_requester_remembers_what_it_lost_and_what_came_well(
    world: World, dies_after: int | None
) -> None:
    script = Script(dies_after=dies_after)
    provider = await world.node(
        "p", executor=ScriptedExecutor(script=script), market=MarketSection(voucher_window_tokens=4)
    )
    requester = await world.node("r")
    world.introduce(requester, provider)
    await buy(requester, order(tokens=40, path="quote"))
    row = await requester.only_row()
    room = requester.requester.spending.room(provider.peer_id)
    expected = -row.vouchered if dies_after else row.vouchered // 2
    assert row.vouchered > 0 and room == requester.market.spend_new_peer + expected
    await world.stop(requester)
    again = await world.node("r")
    assert again.requester.spending.room(provider.peer_id) == room
