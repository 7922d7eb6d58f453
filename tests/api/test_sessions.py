"""Codes that work once, and the tokens that they are traded for."""

import trio
from trio.testing import MockClock

from node.api.sessions import CODE_S_MAX, CODES_MAX, TABS_MAX, Sessions

HOME = "the-token-of-the-home"


async def test_token_is_admitted_when_it_is_the_homes_or_a_tabs() -> None:
    sessions = Sessions(HOME)
    tab = sessions.redeem(sessions.issue_code())
    assert tab is not None and tab != HOME
    assert sessions.admits(HOME) and sessions.admits(tab)
    assert not any(sessions.admits(other) for other in ("", HOME[:-1], f"{tab}x", "é"))


async def test_code_is_refused_when_it_was_used_or_never_issued() -> None:
    sessions = Sessions(HOME)
    code = sessions.issue_code()
    assert sessions.redeem(code) is not None
    assert sessions.redeem(code) is None and sessions.redeem("") is None
    assert not sessions.admits(code)


async def test_code_that_was_never_issued_is_refused_whatever_the_clock_shows(mock_clock: MockClock) -> None:
    assert trio.current_time() == 0.0
    assert Sessions(HOME).redeem("never issued") is None


async def test_code_is_refused_when_its_minute_is_over(autojump_clock: MockClock) -> None:
    sessions = Sessions(HOME)
    early, late = sessions.issue_code(), sessions.issue_code()
    await trio.sleep(CODE_S_MAX)
    assert sessions.redeem(early) is not None
    await trio.sleep(0.001)
    assert sessions.redeem(late) is None


async def test_oldest_code_and_oldest_tab_are_forgotten_when_there_are_too_many() -> None:
    sessions = Sessions(HOME)
    first = sessions.issue_code()
    for _ in range(CODES_MAX):
        last = sessions.issue_code()
    assert sessions.redeem(first) is None
    tab = sessions.redeem(last)
    assert tab is not None
    for _ in range(TABS_MAX):
        assert sessions.admits(tab)
        sessions.redeem(sessions.issue_code())
    assert not sessions.admits(tab)
