import pytest

from node.home import Home
from tests.cli.fakes import FakeDaemon, chunk, souk


def test_command_names_address_origin_and_fix_when_no_daemon_answers(home: Home) -> None:
    ran = souk("devices")
    assert ran.code == 4 and not ran.out
    assert "http://127.0.0.1:11500" in ran.err
    assert "from the default" in ran.err
    assert f"souk --home {home.path} serve" in ran.err


def test_command_says_where_the_address_came_from_when_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUK_API", "http://127.0.0.1:9")
    assert "from SOUK_API" in souk("devices").err
    assert "from --api" in souk("devices", "--api", "http://127.0.0.1:9").err


def test_command_says_that_a_daemon_is_starting_when_the_home_is_held(home: Home) -> None:
    with home.locked():
        assert "starting or stopping" in souk("devices").err


def test_command_names_the_other_address_when_the_home_has_a_daemon_elsewhere(
    daemon: FakeDaemon, home: Home
) -> None:
    with home.locked():
        assert f"has a daemon at {daemon.url}" in souk("devices", "--api", "http://127.0.0.1:9").err


def test_fix_can_be_pasted_when_the_home_has_a_space(home: Home) -> None:
    assert f"souk --home '{home.path}/a b' serve" in souk("devices", "--home", f"{home.path}/a b").err


@pytest.mark.parametrize("address", ["127.0.0.1:11500", "https://x:1", "http://x", "http://x:port"])
def test_command_refuses_an_address_that_is_none(address: str) -> None:
    ran = souk("devices", "--api", address)
    assert ran.code == 2 and "expected an address" in ran.err


def test_command_ends_with_8_when_the_token_is_refused(daemon: FakeDaemon, home: Home) -> None:
    other = Home(home.path.with_name("other"))
    other.ensure_token()
    ran = souk("--home", str(other.path), "--api", daemon.url, "devices")
    assert ran.code == 8 and str(other.token_path) in ran.err


def test_command_sends_the_token_of_its_home(daemon: FakeDaemon, home: Home) -> None:
    daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": []})
    souk("devices")
    assert daemon.asked[0][2]["authorization"] == f"Bearer {home.read_token()}"


def test_command_says_so_when_something_else_answers(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/devices", "hello")
    ran = souk("devices")
    assert ran.code == 1 and "no souk daemon" in ran.err


def test_command_tells_the_daemons_own_words_when_it_refuses(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/connect", {"error": {"message": "cannot dial", "code": "peer_failed"}}, 502)
    ran = souk("peers", "connect", "/ip4/1.2.3.4/tcp/1/p2p/X")
    assert ran.code == 1 and ran.err == "souk: cannot dial\n"


def test_stream_that_breaks_off_is_an_error(daemon: FakeDaemon) -> None:
    daemon.stream(chunk("Hel"), done=False)
    ran = souk("run", "m", "hi")
    assert ran.code == 1 and "broke off" in ran.err
    assert ran.out == "Hel\n"


@pytest.mark.parametrize(
    ("status", "error_code", "expected"),
    [
        (503, "no_capacity", 6),
        (503, "disk", 1),
        (503, "worker_died", 1),
        (429, "too_many_readers", 1),
        (413, "body_too_large", 2),
    ],
)
def test_command_blames_no_peer_for_what_its_own_node_refuses(
    daemon: FakeDaemon, status: int, error_code: str, expected: int
) -> None:
    daemon.answer("GET /api/v1/devices", {"error": {"message": "no", "code": error_code}}, status)
    assert souk("devices").code == expected


def test_command_tells_what_it_asks_when_it_is_verbose(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": []})
    told = souk("-v", "devices", "-o", "json")
    assert told.err.startswith(f"GET {daemon.url}/api/v1/devices (from {daemon.home.api_path}): 200 after ")
    assert daemon.home.read_token() not in told.err
    assert told.json() == {"schema": 1, "devices": []} and not souk("devices").err
