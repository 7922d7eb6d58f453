"""Each thing that keeps a node from selling or buying is found, and nothing else is."""

from dataclasses import replace
from typing import Any

import pytest

from node.api.why_node import why_node
from tests.api.fakes import FACTS
from tests.fakes import worker_state


@pytest.mark.parametrize(
    ("changed", "serve", "buy"),
    [
        ({"role": "client", "models": 0, "slots": 0, "slots_free": 0}, "role", None),
        ({"models": 0, "is_advertised": False}, "no_model", None),
        ({"is_advertised": False}, "no_advert", None),
        ({"is_draining": True}, "draining", None),
        ({"problems": {"worker": "starting"}}, "worker", None),
        ({"problems": {"ledger": "No space left on device"}}, "ledger", "ledger"),
        ({"peers_connected": 0, "offering": 0, "offering_free": 0}, "no_peers", "no_peers"),
        ({"role": "client", "models": 0, "offering": 0, "offering_free": 0}, "role", "no_offer"),
        ({"spend_stranger": 0}, None, "spend_limit"),
    ],
)
def test_what_stands_in_the_way_is_named_with_what_to_do(
    changed: dict[str, Any], serve: str | None, buy: str | None
) -> None:
    answer = why_node(replace(FACTS, **changed))
    assert (answer.can_serve, answer.can_buy) == (serve is None, buy is None)
    blocking = {(finding.about, finding.code) for finding in answer.findings if finding.blocks}
    assert blocking == {(about, code) for about, code in (("serve", serve), ("buy", buy)) if code}
    assert all(finding.advice for finding in answer.findings if finding.code != "draining")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"slots_free": 0}, "busy"),
        ({"credit_stranger": 0}, "credit"),
        ({"declines": {"busy": 3, "credit": 1}}, "declines"),
        ({"offering": 0, "offering_free": 0}, "no_offer"),
        ({"doubted": 1}, "doubted"),
        ({"doubted": 2}, "doubted"),
        ({"offering_free": 0}, "busy"),
        ({"other_versions": 4}, "version"),
        ({"workers": (worker_state(life="quarantined", deaths=3, probe_in_s=9.0),)}, "quarantine"),
    ],
)
def test_what_is_worth_knowing_blocks_nothing(changed: dict[str, Any], code: str) -> None:
    answer = why_node(replace(FACTS, **changed))
    assert answer.can_serve and answer.can_buy
    assert [finding.code for finding in answer.findings] == [code]


def test_nothing_is_found_when_all_is_well() -> None:
    assert why_node(FACTS).findings == ()
