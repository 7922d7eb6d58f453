"""The simulator's scenarios on real daemons: orders under a storm of signals, judged by streams and ledgers.

What the simulator alone can do (partitions, clocks, disks) is its own suite's: ``tests/testnet/``.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from node.testnet.interrupts import Interrupts
from node.testnet.network import Plan
from node.testnet.real import RealReport, run_real
from node.testnet.real_script import draw_script
from node.testnet.scenarios import SCENARIOS, Scenario
from tests.integration.failover_campaign import make_plan
from tests.integration.paced_model import NAME, write_paced_store

# 4 daemons of which one buys; each is down for as long as it takes to start, and a little more.
STORM = Scenario(
    name="storm",
    providers=3,
    requesters=1,
    jobs=300,
    faults_s=300.0,
    crashes=16,
    down_s=(0.0, 2.0),
    glitches=4,
    worker_deaths=1,
)
# Its seed kills a provider and the requester, and freezes the other provider for part of a second.
GUST = Scenario(
    name="gust",
    providers=2,
    requesters=1,
    jobs=8,
    faults_s=5.0,
    crashes=24,
    down_s=(0.0, 0.5),
    glitches=12,
    worker_deaths=12,
)
GUST_SEED = 20

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = write_paced_store(tmp_path_factory.mktemp("store"))
    return make_plan(tmp_path_factory.mktemp("nodes"), store, providers=1, dtype="fp32", models=(NAME,))


def test_every_order_is_answered_once_when_daemons_are_struck(plan: Plan, figure: Figure) -> None:
    report = run_real(GUST, GUST_SEED, replace(plan, folder=plan.folder / "gust"), Interrupts())
    show(figure, report)
    assert report.strikes["kill"] >= 1


@pytest.mark.deep
def test_every_order_is_answered_once_when_daemons_are_struck_for_minutes(plan: Plan, figure: Figure) -> None:
    report = run_real(STORM, 1, replace(plan, folder=plan.folder / "storm"), Interrupts())
    show(figure, report)
    assert report.strikes["kill"] >= 60


def show(figure: Figure, report: RealReport) -> None:
    books, title = report.books, f"real daemons, {report.scenario}"
    strikes = ", ".join(f"{count} x {kind}" for kind, count in sorted(report.strikes.items()))
    again = ", ".join(f"{count} {code}" for code, count in sorted(report.failures.items())) or "none"
    figure(
        title,
        f"{report.answered} of {report.jobs} orders answered over libp2p, {report.continued} by more than one"
        f" provider; {strikes}; failed and ordered again: {again}; {report.wall_s:.0f} s",
    )
    figure(
        f"{title}, books",
        f"{report.jobs - report.answered} orders lost; {books.contracts} contracts, {books.entries} entries,"
        f" {len(report.faults)} faults (settled or paid twice, sums that differ, texts that differ)",
    )
    assert report.faults == []
    assert report.answered == report.jobs


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_script_is_the_same_when_the_seed_is(name: str) -> None:
    scenario = SCENARIOS[name]

    def draw(seed: int) -> object:
        return draw_script(scenario, seed, providers=("a", "b"), requesters=("c",), model=NAME)

    assert draw(1) == draw(1) != draw(2)


def test_script_names_what_signals_cannot_do() -> None:
    script = draw_script(SCENARIOS["churn"], 1, providers=("a", "b"), requesters=("c",), model=NAME)
    assert {"partitions", "power_cuts", "slow_disks", "clock_jumps", "skew_s"} <= set(script.not_applied)
    assert {strike.kind for strike in script.strikes} == {"kill", "freeze", "kill worker", "freeze worker"}
