import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.exposure import ExposureRule

VECTORS = Path(__file__).parents[2] / "protocol" / "spec" / "vectors"
money = st.integers(0, 2_000)
rules = st.builds(ExposureRule, new_peer=money, peer_max=money, pool=money, earned_permille=st.integers(0, 999))


def holds(rule: ExposureRule, *, exposure: int, settled: int, others: int) -> bool:
    """The rule as the specification writes it."""
    earned = settled * rule.earned_permille // 1_000
    return (
        exposure <= min(rule.peer_max, rule.new_peer + earned) and others + max(0, exposure - earned) <= rule.pool
    )


@given(rules, money, money, money)
def test_room_is_the_most_that_keeps_the_rule(
    rule: ExposureRule, exposure: int, settled: int, others: int
) -> None:
    if not holds(rule, exposure=exposure, settled=settled, others=others):
        return
    used = others + rule.from_pool(exposure, settled)
    room = rule.room(exposure=exposure, settled=settled, pool_used=used)
    assert holds(rule, exposure=exposure + room, settled=settled, others=others)
    assert not holds(rule, exposure=exposure + room + 1, settled=settled, others=others)


@given(rules, money, money, money)
def test_room_is_never_negative_when_limits_were_lowered(
    rule: ExposureRule, exposure: int, settled: int, used: int
) -> None:
    assert rule.room(exposure=exposure, settled=settled, pool_used=used) >= 0


@given(rules, money, money)
def test_limit_never_falls_when_more_is_settled(rule: ExposureRule, settled: int, more: int) -> None:
    assert rule.limit(settled) <= rule.limit(settled + more) <= rule.peer_max


@pytest.mark.parametrize("field", ["new_peer", "peer_max", "pool", "earned_permille"])
def test_rule_refuses_to_be_made_when_a_limit_is_negative(field: str) -> None:
    limits = {"new_peer": 1, "peer_max": 1, "pool": 1, "earned_permille": 1}
    with pytest.raises(LocalProtocolError, match=r"0\.\.999"):
        ExposureRule(**{**limits, field: -1})


def test_rule_refuses_to_give_all_that_was_settled_as_credit() -> None:
    with pytest.raises(LocalProtocolError):
        ExposureRule(new_peer=1, peer_max=1, pool=1, earned_permille=1_000)


def test_vectors_hold() -> None:
    vectors = json.loads((VECTORS / "exposure.json").read_text("utf-8"))["valid"]
    assert len(vectors) >= 8
    for vector in vectors:
        rule = ExposureRule(**vector["rule"])
        peers = {name: (peer["exposure"], peer["settled"]) for name, peer in vector["peers"].items()}
        used = sum(rule.from_pool(*peer) for peer in peers.values())
        assert used == vector["pool_used"]
        for name, (exposure, settled) in peers.items():
            found = vector["peers"][name]
            assert rule.from_pool(exposure, settled) == found["from_pool"]
            assert rule.limit(settled) == found["limit"]
            assert rule.room(exposure=exposure, settled=settled, pool_used=used) == found["room"]
