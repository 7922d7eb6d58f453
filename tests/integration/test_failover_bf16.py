"""Answers in bf16 that go on elsewhere: every token lies within the margin that honest runs have."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.models.import_demo import DEMO_MODEL
from node.models.store import ModelStore
from tests.integration.failover_campaign import Campaign, make_plan, make_requests, run_lanes, running
from tests.integration.honest_margin import Referee, shortfalls
from tests.integration.paced_model import NAME, write_paced_store

STORE = Path(sys.prefix) / "share" / "models"
KILLS = 20

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Figure = Callable[[str, str], None]


@pytest.mark.deep
@pytest.mark.real_model
@pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model")
def test_every_token_is_within_the_honest_margin_when_providers_die(tmp_path: Path, figure: Figure) -> None:
    requests = [replace(it, temperature=0) for it in make_requests(DEMO_MODEL, 12, tokens=(48, 80), seed=12)]
    plan = make_plan(tmp_path, STORE, providers=4, dtype="bf16", models=(DEMO_MODEL,))
    with running(plan) as fleet:
        campaign = Campaign(fleet, requests, seed=20)
        campaign.run_undisturbed()
        run_lanes(campaign, ("kill", KILLS))
    referee = Referee(ModelStore(STORE).find(DEMO_MODEL).folder, torch.bfloat16)
    referee.load()
    honest = [referee.read(it.prompt, told.pieces) for it, told in campaign.undisturbed.items()]
    margin = referee.honest_margin(honest)
    for undisturbed in honest:
        assert max(shortfalls(referee.prefill(undisturbed), undisturbed.tokens)) <= margin
    after: list[float] = []
    changed = seconds = 0
    for outcome in campaign.outcomes["kill"]:
        told = outcome.told
        assert told.complete, told
        answer = referee.read(outcome.request.prompt, told.pieces)
        # A turn's end is a token without text.
        assert told.tokens_out == len(answer.tokens) + (told.finish == "stop")
        logits = referee.prefill(answer)
        after += shortfalls(logits, answer.tokens)[outcome.after :]
        two_best = logits[outcome.after :].topk(2).values
        seconds += int(((two_best[:, 0] - two_best[:, 1]) > margin).sum())
        changed += told.text != campaign.undisturbed[outcome.request].text
    calibrated = sum(len(answer.tokens) for answer in honest)
    figure(
        "failover bf16, honest margin",
        f"{margin:.3f} (logits; change of the best token's lead, {calibrated} tokens generated and read again)",
    )
    figure(
        "failover bf16, after the cut",
        f"{len(after)} tokens of {KILLS} answers, {sum(it > margin for it in after)} outside the margin, furthest"
        f" {max(after):.3f} behind the best; the second-best token would have been outside at {seconds} of them;"
        f" {changed} texts other than undisturbed",
    )
    assert max(after) <= margin


def test_margin_tells_a_wrong_token_from_a_rounded_one(tmp_path: Path) -> None:
    folder = ModelStore(write_paced_store(tmp_path)).find(NAME).folder
    referee = Referee(folder, torch.bfloat16)
    referee.load()
    answers = [referee.generate(f"{number}: tell me of the sea.", 40) for number in range(3)]
    margin = referee.honest_margin(answers[:2])
    right = answers[2]
    assert max(shortfalls(referee.prefill(right), right.tokens)) <= margin
    lost = replace(right, tokens=right.tokens[:20] + right.tokens[21:])
    assert max(shortfalls(referee.prefill(lost), lost.tokens)) > margin
    doubled = replace(right, tokens=[*right.tokens[:20], right.tokens[19], *right.tokens[20:]])
    assert max(shortfalls(referee.prefill(doubled), doubled.tokens)) > margin
