from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "protocol" / "spec" / "decisions"


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_decision_says_context_options_and_outcome(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(f"# {path.stem[:4]} ")
    assert [text.count(f"**{part}.**") for part in ("Context", "Options", "Outcome")] == [1, 1, 1]


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(path.stem[:4]) for path in sorted(FOLDER.iterdir())]
    assert numbers == list(range(1, len(numbers) + 1))
