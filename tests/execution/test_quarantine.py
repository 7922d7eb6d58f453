from node.execution.quarantine import Quarantine, QuarantineRules

RULES = QuarantineRules(restart_s=(0.0, 0.5), pauses_s=(10.0, 30.0))


def test_first_deaths_are_followed_by_a_new_worker_at_once() -> None:
    quarantine = Quarantine(RULES)
    quarantine.died(100.0)
    assert (quarantine.is_on, quarantine.next_start_at) == (False, 100.0)
    quarantine.died(200.0)
    assert (quarantine.is_on, quarantine.next_start_at) == (False, 200.5)


def test_device_is_quarantined_when_its_workers_died_three_times_in_ten_minutes() -> None:
    quarantine = Quarantine(RULES)
    for now in (0.0, 300.0, 599.0):
        quarantine.died(now)
    assert (quarantine.is_on, quarantine.next_start_at) == (True, 609.0)


def test_device_is_not_quarantined_when_its_three_deaths_lie_further_apart() -> None:
    quarantine = Quarantine(RULES)
    for now in (0.0, 300.0, 600.0):
        quarantine.died(now)
    assert not quarantine.is_on
    assert quarantine.deaths(600.0) == 2


def test_pauses_grow_when_probes_fail_and_when_a_device_dies_soon_after_one_passed() -> None:
    quarantine = Quarantine(RULES)
    for now in (0.0, 1.0, 2.0, 12.0):
        quarantine.died(now)
    assert quarantine.next_start_at == 42.0
    quarantine.passed()
    assert not quarantine.is_on
    quarantine.died(50.0)
    assert (quarantine.is_on, quarantine.next_start_at) == (True, 80.0)


def test_pauses_stay_long_when_every_probe_fails_for_hours() -> None:
    quarantine = Quarantine(QuarantineRules())
    pauses, now = [], 0.0
    for _ in range(12):
        quarantine.died(now)
        pauses.append(quarantine.next_start_at - now)
        # A probe that hangs for a while before it fails.
        now = quarantine.next_start_at + 5.0
    assert pauses == [0.0, 0.5, 10.0, 30.0, 120.0, *[600.0] * 7]


def test_pauses_start_over_when_a_device_lived_for_ten_minutes() -> None:
    quarantine = Quarantine(RULES)
    for now in (0.0, 1.0, 2.0, 12.0):
        quarantine.died(now)
    quarantine.passed()
    quarantine.died(700.0)
    assert (quarantine.is_on, quarantine.next_start_at) == (False, 700.0)
    for now in (701.0, 702.0):
        quarantine.died(now)
    assert (quarantine.is_on, quarantine.next_start_at) == (True, 712.0)
