from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.config_file import setting_types
from node.home import Home
from tests.cli.fakes import FakeDaemon, souk


def write(home: Home, text: str) -> None:
    home.create()
    home.config_path.write_text(text)


@contextmanager
def running(home: Home) -> Iterator[None]:
    with home.locked():
        yield


def test_show_tells_every_setting_and_its_origin_without_a_daemon(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, "[market]\nprice_in = 5\n")
    monkeypatch.setenv("SOUK_LOG_LEVEL", "debug")
    settings = {it["name"]: it for it in souk("config", "show", "-o", "json").json()["settings"]}
    assert set(settings) == set(setting_types())
    assert settings["market.price_in"] == {
        "name": "market.price_in",
        "value": 5,
        "origin": f"{home.config_path}:2",
        "live": True,
    }
    ran = souk("config", "show", "--origin", "--changed")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["level", "=", '"debug"', "#", "env", "SOUK_LOG_LEVEL"] in lines
    assert ["price_in", "=", "5", "#", f"{home.config_path}:2"] in lines and len(lines) == 5
    assert souk("config").out == souk("config", "show").out


def test_show_tells_the_defaults_whatever_is_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, "[market]\nprice_in = 5\n")
    monkeypatch.setenv("SOUK_MARKET_PRICE_OUT", "6")
    with running(home):
        found = souk("config", "show", "--defaults", "-o", "json").json()["settings"]
    assert {it["origin"] for it in found} == {"default"} and not {5, 6} & {
        it["value"] for it in found if it["name"].startswith("market.price_")
    }
    assert souk("config", "show", "--defaults", "--changed").code == 2


def test_show_asks_the_daemon_when_one_runs(daemon: FakeDaemon, home: Home) -> None:
    answer = {
        "schema": 1,
        "path": "p",
        "settings": [{"name": "api.bind", "value": "127.0.0.1:1", "origin": "--set api.bind", "live": False}],
    }
    daemon.answer("GET /api/v1/config", answer)
    with running(home):
        assert souk("config", "show", "-o", "json").json() == answer
        assert souk("config", "get", "api.bind").out == "127.0.0.1:1\n"
        assert souk("config", "get", "api.bimd").code == 5


def test_check_ends_with_3_and_names_every_fault(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert souk("config", "check").code == 0
    write(home, "[market]\nprice_ni = 5\n")
    monkeypatch.setenv("SOUK_MARKET_PRICE_UOT", "1")
    ran = souk("config", "check")
    assert ran.code == 3 and ran.err.splitlines() == [
        f"{home.config_path}:2: market.price_ni: unknown key (did you mean price_in?)",
        "env SOUK_MARKET_PRICE_UOT: unknown setting (did you mean SOUK_MARKET_PRICE_OUT?)",
    ]
    assert souk("config", "check", "/nonexistent.toml").code == 3


def test_set_writes_one_setting_and_keeps_the_rest(home: Home) -> None:
    write(home, "[market]\nprice_in = 5  # mine\n")
    assert souk("config", "set", "market.price_in", "7").code == 0
    assert souk("config", "set", "owner.hours", "22:00-07:00,sat 00:00-24:00").code == 0
    assert home.config_path.read_text() == (
        '[market]\nprice_in = 7  # mine\n\n[owner]\nhours = ["22:00-07:00", "sat 00:00-24:00"]\n'
    )
    assert souk("config", "path").out == f"{home.config_path}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["market.price_ni", "7"], "did you mean market.price_in?"),
        (["market.price_in", "cheap"], "expected int"),
        (["owner.hours", "always"], "expected hours such as"),
    ],
)
def test_set_changes_nothing_when_the_value_is_bad(home: Home, arguments: list[str], said: str) -> None:
    write(home, "[market]\nprice_in = 5\n")
    ran = souk("config", "set", *arguments)
    assert ran.code == 3 and said in ran.err
    assert home.config_path.read_text() == "[market]\nprice_in = 5\n"


def test_set_keeps_a_link_and_who_may_read_the_file(home: Home, tmp_path: Path) -> None:
    home.create()
    kept = tmp_path / "kept.toml"
    kept.write_text("[market]\n")
    kept.chmod(0o640)
    home.config_path.symlink_to(kept)
    assert souk("config", "set", "market.price_in", "7").code == 0
    assert home.config_path.is_symlink() and kept.read_text() == "[market]\nprice_in = 7\n"
    assert kept.stat().st_mode & 0o777 == 0o640


def test_set_ends_with_3_when_the_file_is_no_text(home: Home) -> None:
    home.create()
    home.config_path.write_bytes(b"\xff\xfe")
    ran = souk("config", "set", "market.price_in", "7")
    assert ran.code == 3 and "cannot be read" in ran.err


def test_set_says_what_makes_a_running_daemon_follow(daemon: FakeDaemon, home: Home) -> None:
    with running(home):
        assert "souk config reload" in souk("config", "set", "market.price_in", "7").err
        assert "restart" in souk("config", "set", "node.name", "b").err


def test_reload_says_what_changed_and_what_waits_for_a_restart(daemon: FakeDaemon) -> None:
    change = {"name": "market.price_in", "before": 1, "after": 2, "origin": "config.toml:3"}
    late = {"name": "node.name", "before": "a", "after": "b", "origin": "config.toml:1"}
    daemon.answer("POST /api/v1/reload", {"schema": 1, "changed": [change], "needs_restart": [late]})
    assert souk("config", "reload").out.splitlines() == [
        "market.price_in: 1 → 2  (config.toml:3)",
        "node.name: stays a until a restart brings b  (config.toml:1)",
    ]


def test_reload_ends_with_3_when_the_new_configuration_is_faulty(daemon: FakeDaemon) -> None:
    error = {"error": {"message": "nothing was changed\nconfig.toml:1: x", "code": "config_invalid"}}
    daemon.answer("POST /api/v1/reload", error, 409)
    ran = souk("config", "reload")
    assert ran.code == 3 and "config.toml:1: x" in ran.err
