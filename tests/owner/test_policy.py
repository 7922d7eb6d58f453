import math
from dataclasses import fields, replace
from datetime import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import OwnerSection
from node.owner.policy import Reading, is_idle_policy, judge, unread, wanted_readings

MONDAY_NOON = datetime(2026, 11, 23, 12, 0)
CALM = Reading(
    idle_s=math.inf,
    foreign_cpu_percent=0.0,
    foreign_gpu_percent=0.0,
    temperature_celsius=20.0,
    power_watts=1.0,
    gpu_memory_free_mib=1 << 20,
    on_battery=False,
)
STRICT = OwnerSection(
    idle_s=300,
    foreign_cpu_percent_max=20,
    foreign_gpu_percent_max=10,
    temperature_celsius_max=80,
    power_watts_max=300,
    gpu_memory_free_mib=1024,
    on_battery=False,
    calm_s=60,
)
number = st.floats(0, 1000) | st.none()
readings = st.builds(
    Reading,
    idle_s=number,
    foreign_cpu_percent=st.floats(0, 100) | st.none(),
    foreign_gpu_percent=st.floats(0, 100) | st.none(),
    temperature_celsius=number,
    power_watts=number,
    gpu_memory_free_mib=st.integers(0, 4096) | st.none(),
    on_battery=st.booleans() | st.none(),
)
policies = st.builds(
    OwnerSection,
    hours=st.sampled_from([(), ("00:00-06:00",), ("mon 11:00-13:00",)]),
    idle_s=st.integers(0, 600),
    foreign_cpu_percent_max=st.integers(0, 100),
    foreign_gpu_percent_max=st.integers(0, 100),
    temperature_celsius_max=st.integers(0, 150),
    power_watts_max=st.integers(0, 1000),
    gpu_memory_free_mib=st.integers(0, 4096),
    on_battery=st.booleans(),
    calm_s=st.integers(0, 600),
)


def codes(
    owner: OwnerSection, reading: Reading, *, now: float = 1e6, disturbed_at: float | None = None
) -> list[str]:
    verdict = judge(owner, reading, local=MONDAY_NOON, now=now, disturbed_at=disturbed_at)
    return [objection.code for objection in verdict.objections]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"idle_s": 299.0}, "idle"),
        ({"foreign_cpu_percent": 21.0}, "cpu"),
        ({"foreign_gpu_percent": 11.0}, "gpu"),
        ({"temperature_celsius": 81.0}, "temperature"),
        ({"power_watts": 301.0}, "power"),
        ({"gpu_memory_free_mib": 1023}, "gpu_memory"),
        ({"on_battery": True}, "battery"),
    ],
)
def test_policy_objects_when_a_limit_is_passed(changes: dict[str, float], code: str) -> None:
    assert codes(STRICT, replace(CALM, **changes)) == [code]  # type: ignore[arg-type]
    assert codes(STRICT, CALM) == []
    assert codes(OwnerSection(), replace(CALM, **changes)) == []  # type: ignore[arg-type]


def test_policy_says_when_it_opens_again_when_only_the_clock_objects() -> None:
    owner = OwnerSection(hours=("18:30-08:00",))
    verdict = judge(owner, CALM, local=MONDAY_NOON, now=0.0, disturbed_at=None)
    assert (verdict.is_open, verdict.opens_in_s) == (False, 6.5 * 3600)
    assert "18:30-08:00" in verdict.objections[0].message
    hot = judge(
        msgspec.structs.replace(owner, temperature_celsius_max=10),
        CALM,
        local=MONDAY_NOON,
        now=0,
        disturbed_at=None,
    )
    assert hot.opens_in_s is None


def test_policy_waits_for_calm_after_a_disturbance_and_not_after_the_clock() -> None:
    disturbed = judge(STRICT, replace(CALM, idle_s=1.0), local=MONDAY_NOON, now=100.0, disturbed_at=None)
    assert disturbed.disturbed_at == 100.0
    waiting = judge(STRICT, CALM, local=MONDAY_NOON, now=159.0, disturbed_at=100.0)
    assert [it.code for it in waiting.objections] == ["calm"] and waiting.opens_in_s == 1.0
    assert judge(STRICT, CALM, local=MONDAY_NOON, now=160.0, disturbed_at=100.0).is_open
    outside = judge(OwnerSection(hours=("00:00-01:00",)), CALM, local=MONDAY_NOON, now=0.0, disturbed_at=None)
    assert outside.disturbed_at is None


@given(policies, readings)
def test_policy_is_open_only_when_every_limit_holds(owner: OwnerSection, reading: Reading) -> None:
    holds = [
        not owner.hours or owner.hours == ("mon 11:00-13:00",),
        reading.idle_s is None or reading.idle_s >= owner.idle_s,
        (reading.foreign_cpu_percent or 0) <= owner.foreign_cpu_percent_max,
        (reading.foreign_gpu_percent or 0) <= owner.foreign_gpu_percent_max,
        not owner.temperature_celsius_max or (reading.temperature_celsius or 0) <= owner.temperature_celsius_max,
        not owner.power_watts_max or (reading.power_watts or 0) <= owner.power_watts_max,
        reading.gpu_memory_free_mib is None or reading.gpu_memory_free_mib >= owner.gpu_memory_free_mib,
        owner.on_battery or not reading.on_battery,
    ]
    assert (codes(owner, reading) == []) is all(holds)


@given(policies, readings, st.floats(0, 1e6))
def test_policy_never_promises_an_opening_that_it_does_not_keep(
    owner: OwnerSection, reading: Reading, disturbed_at: float
) -> None:
    verdict = judge(owner, reading, local=MONDAY_NOON, now=1e6, disturbed_at=disturbed_at)
    if verdict.opens_in_s is None:
        assert verdict.is_open or any(it.opens_in_s is None for it in verdict.objections)
        return
    later = MONDAY_NOON.fromtimestamp(MONDAY_NOON.timestamp() + verdict.opens_in_s)
    # To the second, as a wait is: the calm that is wanted may be over a rounding later.
    then = judge(
        owner, reading, local=later, now=1e6 + verdict.opens_in_s + 1e-6, disturbed_at=verdict.disturbed_at
    )
    assert then.is_open


@given(policies)
def test_policy_that_keeps_nobody_out_wants_no_reading(owner: OwnerSection) -> None:
    assert is_idle_policy(owner) is (not owner.hours and not wanted_readings(owner))
    assert set(unread(owner, Reading())) == set(wanted_readings(owner)) <= {it.name for it in fields(Reading)}
    assert codes(owner, Reading()) in ([], ["hours"])


def test_default_policy_keeps_nobody_out() -> None:
    assert is_idle_policy(OwnerSection())
