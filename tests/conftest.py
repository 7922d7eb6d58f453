"""Figures: what a suite measured or counted, printed at its end, so that nobody has to type one by hand."""

from collections.abc import Callable
from typing import Final

import pytest

FIGURES: Final = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function (what, value) that adds a line to the summary of this run."""
    figures = request.config.stash.setdefault(FIGURES, [])

    def note(what: str, value: str) -> None:
        figures.append((what, value))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not (figures := config.stash.get(FIGURES, [])):
        return
    terminalreporter.section("figures")
    for what, value in figures:
        terminalreporter.write_line(f"{what}: {value}")
