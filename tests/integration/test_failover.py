"""Providers that die or freeze in the middle of an answer: what the client's stream shows, and what the books say.

Real daemons, workers and sockets on loopback. The mass of strikes runs on a small model in fp32, where an answer
is the same to the last token wherever it runs; the chat model in bf16 is held to the margin that honest runs of it
have among themselves.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from node.testnet.real_books import read_books
from node.testnet.real_fleet import ORPHAN_S_MAX, Fleet
from tests.integration.failover_campaign import Campaign, Outcome, make_plan, make_requests, run_lanes, running
from tests.integration.paced_model import NAME, write_paced_store

KILL_VERDICT_S_MAX = 2.0
FREEZE_VERDICT_S_MAX = 10.0

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_paced_store(tmp_path_factory.mktemp("store"))


def test_client_sees_no_gap_when_providers_die_in_mid_stream(store: Path, tmp_path: Path, figure: Figure) -> None:
    plan = make_plan(tmp_path, store, providers=3, dtype="fp32", models=(NAME,))
    with running(plan) as fleet:
        strike(fleet, figure, "failover (short)", [[("kill", 2), ("freeze", 1)]], orders=4)


@pytest.mark.deep
def test_client_sees_no_gap_in_two_hundred_kills_and_fifty_freezes(
    store: Path, tmp_path: Path, figure: Figure
) -> None:
    plan = make_plan(tmp_path, store, providers=8, dtype="fp32", models=(NAME,))
    with running(plan) as fleet:
        # Not side by side: an order that meets a frozen provider first waits until that is given up, and each
        # kill is followed by five seconds of computing until that daemon serves again.
        phases = [[("freeze", 50)] * 3, [("kill", 200)] * 2]
        strike(fleet, figure, "failover", phases, orders=24)
        verify_with_the_command(fleet)


def strike(
    fleet: Fleet, figure: Figure, title: str, phases: Sequence[Sequence[tuple[str, int]]], *, orders: int
) -> None:
    campaign = Campaign(fleet, make_requests(NAME, orders, tokens=(80, 160), seed=orders), seed=orders)
    campaign.run_undisturbed()
    for lanes in phases:
        run_lanes(campaign, *lanes)
    killed, frozen = campaign.outcomes["kill"], campaign.outcomes["freeze"]
    report(figure, f"{title}, SIGKILL", killed, campaign)
    report(figure, f"{title}, SIGSTOP", frozen, campaign)
    orphans = [death.orphan_s for death in fleet.deaths]
    figure(f"{title}, workers that outlived their daemon", f"{quantiles(orphans)} after {len(orphans)} SIGKILLs")
    judge_books(fleet, figure, title)
    for outcome in killed + frozen:
        judge(outcome, campaign)
    assert quantile(verdicts(killed), 95) < KILL_VERDICT_S_MAX
    assert quantile(verdicts(frozen), 95) < FREEZE_VERDICT_S_MAX
    assert max(orphans) < ORPHAN_S_MAX


def judge(outcome: Outcome, campaign: Campaign) -> None:
    told, undisturbed = outcome.told, campaign.undisturbed[outcome.request]
    assert told.complete, (outcome.victim, told.error, told.broken, told.phases)
    assert told.text == undisturbed.text
    # One character a token: the text has every token once.
    assert len(told.text) == told.tokens_out == outcome.request.tokens_max


def report(figure: Figure, title: str, outcomes: Sequence[Outcome], campaign: Campaign) -> None:
    lost = doubled = changed = 0
    for outcome in outcomes:
        text, expected = outcome.told.text, campaign.undisturbed[outcome.request].text
        lost += max(len(expected) - len(text), 0)
        doubled += max(len(text) - len(expected), 0)
        changed += len(text) == len(expected) and text != expected
    tokens = sum(outcome.request.tokens_max for outcome in outcomes)
    figure(
        title,
        f"{len(outcomes)} in mid-stream; {lost} tokens lost, {doubled} doubled of {tokens};"
        f" {changed} answers other than undisturbed",
    )
    figure(f"{title}, verdict", quantiles(verdicts(outcomes)))
    figure(f"{title}, silence in the client's stream", quantiles([outcome.gap_s for outcome in outcomes]))


def judge_books(fleet: Fleet, figure: Figure, title: str) -> None:
    books = read_books(fleet)
    states = "; ".join(
        f"{role}s: {', '.join(f'{count} {state}' for state, count in sorted(counts.items()))}"
        for role, counts in sorted(books.states.items())
    )
    figure(
        f"{title}, books",
        f"{books.contracts} contracts, {books.entries} entries in {len(fleet.nodes)} ledgers, {len(books.faults)}"
        f" faults; promised {books.promised} µc, vouchers held {books.received} µc ({states})",
    )
    assert books.faults == []
    assert books.promised >= books.received > 0


def verify_with_the_command(fleet: Fleet) -> None:
    for node in fleet.nodes.values():
        done = subprocess.run(
            [sys.executable, "-m", "node.cli", "--home", node.home, "ledger", "verify"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def verdicts(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.verdict_s for outcome in outcomes if outcome.verdict_s is not None]


def quantile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def quantiles(values: Sequence[float]) -> str:
    return f"p50 {quantile(values, 50):.3f} s, p95 {quantile(values, 95):.3f} s, max {max(values):.3f} s"
