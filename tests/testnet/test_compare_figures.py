from collections.abc import Sequence

import pytest

from node.testnet.compare_figures import ArmFigures, Played, percentile, sum_up
from node.testnet.real_client import Request, Told

REQUEST = Request(model="m", prompt="p", seed=1, temperature=0, tokens_max=3)


def told(text: str, times: Sequence[float], *, peers: Sequence[str] = ("a",), error: str = "") -> Told:
    """Return a stream that began at 10 and has a letter at each of ``times``."""
    return Told(
        began_at=10.0,
        pieces=list(text),
        times=list(times),
        phases=[(10.0, {"phase": "contracted", "peer": peer, "tokens_in": 7}) for peer in peers],
        tokens_out=None if error else len(text),
        finish=None if error else "length",
        error=error,
    )


def played(arm: str, *streams: Told, spent: int | None = None, number: int = 0) -> Played:
    requests = (REQUEST,) * len(streams)
    return Played(arm=arm, round=number, requests=requests, told=streams, seconds=2.0, spent_microcredits=spent)


def row(arm: str, *rounds: Played) -> ArmFigures:
    (found,) = [it for it in sum_up(rounds, "one") if it.arm == arm]
    return found


WHOLE = told("abc", (11, 11.5, 13))


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3.0], 95, 3.0), ([4.0, 1.0, 2.0, 3.0], 50, 2.0), (list(range(1, 101)), 95, 95)],
)
def test_percentile_is_the_nearest_rank(values: list[float], percent: int, expected: float | None) -> None:
    assert percentile(values, percent) == expected


def test_arm_counts_whole_answers_and_names_the_failures() -> None:
    cut = told("ab", (11, 12), error="peer_failed")
    found = row("mesh", played("one", WHOLE, WHOLE), played("mesh", WHOLE, cut))
    assert (found.requests, found.complete, found.failures) == (2, 1, ("peer_failed",))


def test_latencies_are_of_every_text_that_came() -> None:
    cut = told("ab", (12, 16), error="peer_failed")
    refused = told("", (), peers=(), error="no_capacity")
    found = row("mesh", played("one", WHOLE), played("mesh", WHOLE, cut, refused))
    assert (found.first_p50_s, found.first_p95_s) == (1, 2)
    assert (found.next_p50_s, found.next_p95_s, found.silence_s) == (1.5, 4, 4)


def test_speed_and_price_count_whole_answers_only() -> None:
    cut = told("ab", (11, 12), error="peer_failed")
    found = row(
        "mesh", played("one", WHOLE), played("mesh", WHOLE, cut, spent=30), played("mesh", WHOLE, spent=10)
    )
    assert found.tokens_per_s == 6 / 4
    assert found.microcredits_per_million == 40 * 1e6 / (2 * (7 + 3))


def test_price_is_unknown_where_nothing_is_bought() -> None:
    assert row("one", played("one", WHOLE)).microcredits_per_million is None


def test_text_is_compared_with_the_undisturbed_arm_of_the_same_round() -> None:
    other = told("xyz", (11, 12, 13))
    rounds = [
        played("one", WHOLE),
        played("one", other, number=1),
        played("mesh", WHOLE),
        played("mesh", WHOLE, number=1),
    ]
    assert row("mesh", *rounds).same_text == 1


def test_answer_of_two_peers_counts_as_continued() -> None:
    again = told("abc", (11, 12, 13), peers=("a", "a"))
    two = told("abc", (11, 12, 13), peers=("a", "b"))
    assert row("mesh", played("one", WHOLE), played("mesh", two, again)).continued == 1


def test_arm_in_which_nothing_came_has_no_latency() -> None:
    found = row("mesh", played("one", WHOLE), played("mesh", told("", (), error="no_capacity"), spent=0))
    assert (found.complete, found.first_p50_s, found.next_p95_s, found.tokens_per_s) == (0, None, None, 0)
    assert found.microcredits_per_million is None
