from collections.abc import Callable

import pytest

from node.config import MarketSection
from node.ledger.standing import Standing
from node.market.exposures import Exposures, credit_rule, forgive_s, spend_rule
from protocol.exposure import ExposureRule
from protocol.units import MessageId, Microcredits, UnixMs
from tests.fakes import signer_of
from tests.market.adversary import DAY_S, Closest, NaiveRule, Schedule

SCHEDULES = 3_000
SCHEDULES_FORGIVING = 300
SCHEDULES_NAIVE = 300
PEER = signer_of("p").peer_id
RULE = ExposureRule(new_peer=100, peer_max=1_000, pool=500, earned_permille=500)
KEY = MessageId(bytes(32))


@pytest.mark.slow
def test_adversaries_take_no_more_than_both_bounds_and_reach_them(figure: Callable[[str, str], None]) -> None:
    closest, crash_cost = Closest(), 0
    for seed in range(SCHEDULES):
        schedule = Schedule(seed, closest=closest)
        schedule.run()
        crash_cost += schedule.crash_cost
    figure("loss bound: schedules that held both bounds", f"{SCHEDULES} of {SCHEDULES}")
    figure("loss bound: most that one peer took, of its limit", f"{closest.peer:.3f}")
    figure("loss bound: most that all took, of pool + earned", f"{closest.total:.3f}")
    figure("loss bound: the same after something was settled", f"{closest.total_after_settling:.3f}")
    assert closest.peer == closest.total == closest.total_after_settling == 1.0
    assert crash_cost > 0, "no crash came while a contract was open"


@pytest.mark.slow
def test_adversaries_break_the_bound_when_a_settled_peer_leaves_the_pool(
    figure: Callable[[str, str], None],
) -> None:
    closest = Closest()
    for seed in range(SCHEDULES_NAIVE):
        Schedule(seed, rule=NaiveRule, closest=closest).run()
    figure("loss bound: naive rule, most that all took, of pool + earned", f"{closest.total:.1f}")
    assert closest.peer == 1.0 and closest.total > 2.0


@pytest.mark.slow
def test_bounds_hold_in_every_day_when_debts_are_forgiven_after_one() -> None:
    closest = Closest()
    for seed in range(SCHEDULES_FORGIVING):
        Schedule(seed, forgive_after_days=1, closest=closest).run()
    assert closest.peer == closest.total == 1.0


def owing(owed: int, *, paid: int = 0, age_s: float = 0.0, forgive: float = DAY_S) -> Exposures:
    exposures = Exposures(RULE, forgive_s=forgive)
    read_at_ms = UnixMs(1_800_000_000_000)
    made_ms = UnixMs(read_at_ms - round(age_s * 1_000))
    standing = Standing(settled=Microcredits(paid), paid=Microcredits(paid), owed=((made_ms, Microcredits(owed)),))
    exposures.remember({PEER: standing}, read_at_ms, now=50.0)
    return exposures


def test_debt_counts_until_its_day_is_over_and_then_no_more() -> None:
    exposures = owing(60, age_s=DAY_S / 2)
    assert exposures.room(PEER, 50.0) == 40
    assert exposures.room(PEER, DAY_S / 2) == 40
    assert exposures.room(PEER, DAY_S / 2 + 3_700) == 100


def test_debt_from_before_the_last_day_is_forgiven_at_the_start() -> None:
    assert owing(60, age_s=DAY_S + 7_200).room(PEER, 50.0) == 100


def test_debt_counts_for_ever_when_nothing_is_forgiven() -> None:
    market = MarketSection(forgive_after_days=0)
    exposures = owing(60, age_s=1e9, forgive=forgive_s(market))
    assert exposures.room(PEER, 1e12) == 40


def test_settlement_covers_the_oldest_debt_first() -> None:
    exposures = owing(60, age_s=DAY_S + 7_200)
    exposures.owe(PEER, 80, at=50.0)
    assert exposures.room(PEER, 50.0) == 20, "the forgiven 60 do not count"
    exposures.settled(PEER, 60)
    assert exposures.room(PEER, 50.0) == 50, "they were paid first: only the limit rises"
    exposures.settled(PEER, 100)
    assert exposures.room(PEER, 50.0) == 110


def test_settlement_counts_once_when_it_comes_again_or_late() -> None:
    exposures = owing(90)
    for total in (40, 40, 10):
        exposures.settled(PEER, total)
        assert exposures.room(PEER, 50.0) == 100 + 20 - 50


def test_stranger_that_leaves_nothing_open_is_forgotten() -> None:
    exposures = Exposures(RULE)
    for amount in (0, 10):
        exposures.reserve(KEY, PEER, amount)
        exposures.release(KEY)
        exposures.release(KEY)
    assert not exposures._peers and exposures.room(PEER, 0.0) == 100


def test_pool_is_said_to_be_the_limit_when_it_is() -> None:
    exposures = Exposures(RULE)
    exposures.reserve(KEY, signer_of("other").peer_id, 450)
    said = "0 µc are open and 0 µc reserved of 100 µc; all peers together have 450 of 500 µc"
    assert exposures.describe(PEER, 0.0) == said


def test_rules_come_from_the_settings_of_each_side() -> None:
    market = MarketSection(credit_new_peer=1, credit_peer_max=2, credit_pool_new=3, earned_percent=7)
    assert credit_rule(market) == ExposureRule(new_peer=1, peer_max=2, pool=3, earned_permille=70)
    market = MarketSection(spend_new_peer=1, spend_peer_max=2, spend_pool_new=3, earned_percent=7)
    assert spend_rule(market) == ExposureRule(new_peer=1, peer_max=2, pool=3, earned_permille=70)
