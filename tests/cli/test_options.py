import io

import pytest

from node.cli.options import Globals


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_are_for_terminals_only() -> None:
    assert Globals().colors(Terminal()) and not Globals().colors(io.StringIO())


@pytest.mark.parametrize(("value", "expected"), [("", True), ("1", False), ("0", False)])
def test_there_are_no_colours_when_no_color_is_set_and_not_empty(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert Globals().colors(Terminal()) is expected


def test_there_are_no_colours_when_the_user_or_the_terminal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Globals(no_color=True).colors(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not Globals().colors(Terminal())
