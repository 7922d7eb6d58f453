from collections import Counter

from node.cli.testnet_real import report_payload, report_text
from node.testnet.real import RealReport


def make_report() -> RealReport:
    report = RealReport(scenario="churn", seed=4, jobs=3, answered=3, continued=1, not_applied=("partitions",))
    report.strikes = Counter({"kill": 2})
    report.failures = Counter({"cut": 1})
    return report


def test_report_names_what_was_not_applied() -> None:
    text = report_text(report_payload(make_report()))
    assert "churn seed 4: 3 of 3 orders answered" in text
    assert "2 kill" in text
    assert "1 cut" in text
    assert "not applied: partitions" in text
    assert "broken" not in text


def test_report_names_every_rule_that_is_broken() -> None:
    report = make_report()
    report.faults = ["job 1: 5 tokens answered, 7 bought"]
    payload = report_payload(report)
    assert payload["violations"] == ["job 1: 5 tokens answered, 7 bought"]
    assert "broken rule: job 1" in report_text(payload)
