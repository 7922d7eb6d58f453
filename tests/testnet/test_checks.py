"""Faults planted in the node are seen by the simulation's checks: the proof that the checks can see."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from node.testnet.campaign import run_quietly
from tests.testnet.mutants import MUTANTS, Plant, find

SEEDS_NEARBY = 8
SEEDS_DEEP = 200
CORES = 2


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "name", "seed"), MUTANTS, ids=lambda it: getattr(it, "__name__", None))
def test_checks_see_the_fault_when_it_is_planted(
    plant: Plant, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    # The first of them shows it today; a change of the node moves what a seed does.
    reports = (run_quietly(name, seed + number) for number in range(SEEDS_NEARBY))
    seen = next((report for report in reports if report.violations), None)
    assert seen is not None, f"{plant.__name__} was not seen in {name} with {SEEDS_NEARBY} seeds from {seed} on"
    assert seen.history


@pytest.mark.slow
@pytest.mark.deep
def test_checks_see_every_planted_fault_within_two_hundred_seeds(figure: Callable[[str, str], None]) -> None:
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(find, seeds=SEEDS_DEEP), range(len(MUTANTS))))
    for (plant, name, _seed), seen in zip(MUTANTS, found, strict=True):
        how = "not seen" if seen is None else f"seed {seen[0]} of {name} ({seen[1]})"
        figure(f"planted fault {plant.__name__}", how)
    figure("planted faults seen", f"{sum(it is not None for it in found)} of {len(MUTANTS)}")
    assert None not in found
