import pytest

from node.errors import ExecutionError
from node.execution.residency import Residency
from protocol.units import ModelId

A, B, C = (ModelId(letter * 32) for letter in (b"a", b"b", b"c"))


def full() -> Residency:
    """A device of 100 bytes with A (60) and B (40); A was used last."""
    residency = Residency(100)
    residency.add(A, 60)
    residency.add(B, 40)
    residency.begin_use(A)
    residency.end_use(A)
    return residency


def test_longest_unused_model_leaves_first_and_no_more_than_needed() -> None:
    assert full().victims(0) == ()
    assert full().victims(40) == (B,)
    assert full().victims(41) == (B, A)


def test_model_with_users_or_a_pin_stays() -> None:
    residency = full()
    residency.begin_use(B)
    assert residency.victims(60) == (A,)
    with pytest.raises(ExecutionError) as refused:
        residency.victims(61)
    assert refused.value.code == "model_busy"
    residency.end_use(B)
    assert residency.victims(100) == (A, B)


def test_model_never_fits_beside_what_is_pinned() -> None:
    residency = Residency(100)
    residency.add(A, 60, is_pinned=True)
    with pytest.raises(ExecutionError, match=r"41 bytes .* has 100, of which pinned models keep 60") as refused:
        residency.victims(41)
    assert refused.value.code == "memory"
    assert residency.victims(40) == ()


def test_model_is_not_unloaded_while_jobs_use_it() -> None:
    residency = full()
    residency.begin_use(A)
    with pytest.raises(ExecutionError, match="1 jobs use this model") as refused:
        residency.remove(A)
    assert refused.value.code == "model_busy" and A in residency
    residency.end_use(A)
    residency.remove(A)
    assert A not in residency and residency.free_bytes == 60


def test_budget_that_shrinks_under_the_models_is_won_back_from_the_oldest() -> None:
    residency = full()
    residency.budget_bytes = 70
    assert residency.free_bytes == -30
    assert residency.victims(0) == (B,)


def test_models_with_jobs_or_a_pin_are_kept() -> None:
    residency = full()
    assert residency.idle() == (B, A) and residency.kept_bytes == 0
    residency.begin_use(B)
    assert residency.idle() == (A,) and residency.kept_bytes == 40
