from dataclasses import asdict

import pytest

from node.cli.compare import format_table, make_payload
from node.testnet.compare import Comparison, make_arms
from node.testnet.compare_figures import ArmFigures
from node.testnet.machine import describe_machine
from tests.cli.fakes import souk

SETTINGS = {
    "model": "m", "dtype": "fp32", "nodes": 4, "requests": 8, "rounds": 1, "concurrency": 2, "max_tokens": 16,
    "seed": 1,
}  # fmt: skip
MESH = ArmFigures(
    arm="mesh of 4, 1 killed",
    requests=8,
    complete=7,
    same_text=6,
    continued=2,
    failures=("no_capacity",),
    first_p50_s=0.0714,
    first_p95_s=1.25,
    next_p50_s=0.02,
    next_p95_s=0.04,
    silence_s=2.0,
    tokens_per_s=31.25,
    microcredits_per_million=512_345.6,
)
DEAD = ArmFigures(
    arm="one node, killed",
    requests=8,
    complete=0,
    same_text=0,
    continued=0,
    failures=("ConnectionRefusedError",) * 8,
    first_p50_s=None,
    first_p95_s=None,
    next_p50_s=None,
    next_p95_s=None,
    silence_s=0.0,
    tokens_per_s=0.0,
    microcredits_per_million=None,
)


def line_of(text: str, start: str) -> str:
    """Return the cells of one line, one space between them."""
    (line, *_) = [line for line in text.splitlines() if line.startswith(start)]
    return " ".join(line.removeprefix(start).split())


def test_table_shows_losses_as_they_are() -> None:
    comparison = Comparison(rounds=(), alone_s=0.5)
    payload = make_payload(SETTINGS, describe_machine(), comparison, [asdict(MESH), asdict(DEAD)])
    text = format_table(payload)
    assert line_of(text, MESH.arm) == "7 of 8 87.5 % 6 71 ms 1250 ms 20 ms 40 ms 2000 ms 31.2 512,346"
    assert line_of(text, DEAD.arm) == "0 of 8 0.0 % 0 - - - - 0 ms 0.0 -"
    assert "one node, killed: 8 ConnectionRefusedError" in text
    assert "mesh of 4, 1 killed: 1 no_capacity, 2 whole by more than one peer" in text
    assert payload["machine"]["commit"] in text and "one machine" in text


def test_arms_have_a_kill_on_both_sides() -> None:
    assert {(arm.is_mesh, arm.kills) for arm in make_arms(4)} == {(a, b) for a in (0, 1) for b in (0, 1)}


@pytest.mark.parametrize("wrong", [["--requests", "1"], ["--nodes", "1"], ["--max-tokens", "x"]])
def test_compare_refuses_what_cannot_be_compared(wrong: list[str]) -> None:
    assert souk("compare", *wrong).code == 2
