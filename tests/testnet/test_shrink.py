import pytest

from node.testnet.campaign import run_quietly
from node.testnet.shrink import shrink
from tests.testnet.mutants import open_offer_not_waited_for


@pytest.mark.slow
def test_run_is_cut_down_to_what_breaks_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    open_offer_not_waited_for(monkeypatch)
    report = run_quietly("storm", 1)
    shrunk = shrink(report, runs_max=40)
    short = shrunk.report
    assert short.violations[0].rule == report.violations[0].rule
    assert 0 < len(short.items) <= 4 < len(report.items)
    assert any(item.startswith("order/") for item in short.items)
    again = run_quietly("storm", 1, only=frozenset(short.items))
    assert (again.trace, again.violations) == (short.trace, short.violations)


@pytest.mark.slow
def test_fault_changes_nothing_about_the_others_when_it_is_left_out() -> None:
    whole = run_quietly("partitions", 4, jobs=0)
    kept = frozenset(item for item in whole.items if not item.startswith("glitch/"))
    part = run_quietly("partitions", 4, jobs=0, only=kept)
    assert part.items == tuple(item for item in whole.items if item in kept)
    assert part.faults["partition"] == whole.faults["partition"] > 0
    assert part.faults["glitch"] == 0
