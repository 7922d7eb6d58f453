import pytest

from node.testnet.campaign import Tally, run_seeds


@pytest.mark.slow
def test_runs_are_the_same_and_in_order_when_processes_share_them() -> None:
    alone = list(run_seeds("calm", range(1, 4), jobs=2))
    shared = list(run_seeds("calm", range(1, 4), jobs=2, processes=2))
    assert [report.seed for report in shared] == [1, 2, 3]
    assert [report.trace for report in shared] == [report.trace for report in alone]


@pytest.mark.slow
def test_tally_counts_what_its_runs_did() -> None:
    tally = Tally()
    reports = list(run_seeds("churn", range(1, 3)))
    for report in reports:
        tally.add(report)
    assert tally.jobs == sum(it.orders.total() - it.orders["not_placed"] for it in reports) > 0
    assert tally.crashes == sum(it.crashes for it in reports) > 0
    assert (tally.lost, tally.paid_twice, tally.rules.total()) == (0, 0, 0)
    lines = dict(tally.lines())
    assert lines["jobs"].startswith(f"{tally.jobs} in 2 seeds: ")
    assert lines["partitions"].startswith(f"{tally.faults['partition']} (")


def test_tally_counts_a_lost_job_as_lost_and_double_pay_as_double_pay() -> None:
    tally = Tally()
    tally.orders[""] = 1
    tally.rules.update(["a finished answer is not whole", "tokens paid twice", "meter decreases"])
    assert (tally.lost, tally.paid_twice) == (2, 1)
    assert dict(tally.lines())["other rules broken"] == "1"
