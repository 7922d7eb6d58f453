from tests.cli.fakes import FakeDaemon, souk


def test_open_prints_an_address_that_holds_the_one_time_code(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/dashboard", {"schema": 1, "code": "abc_-1", "expires_s": 60.0})
    assert souk("open").out == f"{daemon.url}/#code=abc_-1\n"
    assert souk("open", "-o", "json").json() == {"schema": 1, "url": f"{daemon.url}/#code=abc_-1"}


def test_open_ends_with_4_when_no_daemon_runs() -> None:
    assert souk("open").code == 4
