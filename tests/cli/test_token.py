import pytest

from node.home import Home
from tests.cli.fakes import FakeDaemon, souk


def test_token_is_shown_bare_for_other_programs(home: Home) -> None:
    made = home.ensure_token()
    assert souk("token", "show").out == f"{made}\n"
    assert souk("token", "show", "-o", "json").json() == {
        "schema": 1,
        "token": made,
        "file": str(home.token_path),
    }


def test_token_is_missed_with_8_and_what_makes_one() -> None:
    ran = souk("token", "show")
    assert ran.code == 8 and "souk serve makes one" in ran.err


def test_home_gets_another_token_when_no_daemon_runs(home: Home) -> None:
    before = home.ensure_token()
    ran = souk("token", "rotate")
    after = home.read_token()
    assert ran.code == 0 and after != before and "the next one follows it" in ran.out
    assert not any(secret in ran.out + ran.err for secret in (before, after))
    assert home.token_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_damaged_token_is_replaced(home: Home, mode: int) -> None:
    home.create()
    home.token_path.touch()
    home.token_path.chmod(mode)
    assert souk("token", "show").code == 1
    assert souk("token", "rotate").code == 0
    assert home.read_token()


def test_running_daemon_is_asked_and_writes_the_file_itself(daemon: FakeDaemon, home: Home) -> None:
    before = home.read_token()
    daemon.answer("POST /api/v1/token/rotate", {"schema": 1, "file": "/elsewhere/token", "rotated": True})
    with home.locked():
        ran = souk("token", "rotate", "-o", "json")
    assert ran.json() == {"schema": 1, "file": "/elsewhere/token", "daemon_follows": True}
    assert daemon.asked[-1][0] == "POST /api/v1/token/rotate" and home.read_token() == before
