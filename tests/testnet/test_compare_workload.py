import itertools
import statistics

import pytest

from node.testnet.compare_workload import Workload, draw_workload


def draw(seed: str, *, requests: int = 24, concurrency: int = 2) -> Workload:
    return draw_workload(seed, "m", requests=requests, concurrency=concurrency, tokens_max=8)


def test_workload_is_the_same_when_the_seed_is() -> None:
    assert draw("1/0") == draw("1/0")
    assert len({draw(seed) for seed in ("1/0", "1/1", "2/0")}) == 3


def test_workload_asks_everybody_something_else() -> None:
    workload = draw("1")
    assert len({request.prompt for request in workload.requests}) == len(workload.arrivals) == 24
    assert {request.temperature for request in workload.requests} == {0, 0.8}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_arrivals_come_as_often_as_asked_for(concurrency: int) -> None:
    arrivals = draw("3", requests=2000, concurrency=concurrency).arrivals
    assert arrivals[0] == 0 and list(arrivals) == sorted(arrivals)
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(1 / concurrency, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(1 / concurrency, rel=0.1)  # as of an exponential


@pytest.mark.parametrize("seed", range(20))
def test_strike_comes_after_the_first_and_before_the_last_request(seed: int) -> None:
    workload = draw(str(seed), requests=2)
    assert 0 < workload.strike_at < workload.arrivals[-1]
