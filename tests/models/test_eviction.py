from hypothesis import given
from hypothesis import strategies as st

from node.models.eviction import Candidate, freed_bytes, plan_eviction
from protocol.units import ModelId


def candidate(
    name: str, used_at_s: int, *, size: int = 10, pinned: bool = False, served: bool = False
) -> Candidate:
    return Candidate(
        model_id=ModelId(name.encode().ljust(32)),
        name=name,
        size_bytes=size,
        used_at_s=used_at_s,
        pinned=pinned,
        served=served,
    )


def test_models_used_longest_ago_go_until_there_is_room_and_each_says_why() -> None:
    models = [
        candidate("new", 400),
        candidate("old", 100),
        candidate("pinned", 50, pinned=True),
        candidate("served", 60, served=True),
        candidate("older", 90),
    ]
    plan = plan_eviction(models, 15)
    assert [(found.name, found.removed) for found in plan] == [
        ("pinned", False),
        ("served", False),
        ("older", True),
        ("old", True),
        ("new", False),
    ]
    assert [found.reason.split(" ")[0] for found in plan] == ["pinned:", "a", "used", "used", "there"]
    assert "1970-01-01 00:01:30Z" in plan[2].reason


def test_nothing_goes_when_there_is_room() -> None:
    assert not any(found.removed for found in plan_eviction([candidate("a", 1), candidate("b", 2)], 0))


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 50), st.booleans(), st.booleans()), max_size=8),
    st.integers(-50, 300),
)
def test_plan_frees_enough_or_all_it_may_and_never_one_too_many(
    found: list[tuple[int, int, bool, bool]], free_up: int
) -> None:
    models = [
        candidate(f"m{i}", used, size=size, pinned=p, served=s) for i, (used, size, p, s) in enumerate(found)
    ]
    plan = plan_eviction(models, free_up)
    removed = {decision.name for decision in plan if decision.removed}
    free_to_go = {model.name for model in models if not model.pinned and not model.served}
    assert len(plan) == len(models) and removed <= free_to_go
    assert freed_bytes(plan) >= free_up or removed == free_to_go
    last = next((decision for decision in reversed(plan) if decision.removed), None)
    assert last is None or freed_bytes(plan) - last.size_bytes < free_up
