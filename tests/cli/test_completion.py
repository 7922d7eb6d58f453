from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from node.cli.app import souk as app
from node.cli.completion import SHELLS
from tests.cli.fakes import FakeDaemon, souk


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script_that_asks_souk(shell: str) -> None:
    ran = souk("completion", shell)
    assert ran.code == 0 and "_SOUK_COMPLETE" in ran.out and f"{shell}_complete" in ran.out


@pytest.mark.parametrize(
    ("words", "last", "expected"),
    [([], "resu", "resume"), (["config"], "re", "reload"), (["run", "m"], "--max-t", "--max-tokens")],
)
def test_verbs_and_options_are_completed(words: list[str], last: str, expected: str) -> None:
    found = ShellComplete(app, {}, "souk", "_SOUK_COMPLETE").get_completions(words, last)
    assert [item.value for item in found] == [expected]


def complete(*words: str) -> list[str]:
    *given, last = words
    return [item.value for item in ShellComplete(app, {}, "souk", "_SOUK_COMPLETE").get_completions(given, last)]


def test_models_jobs_and_peers_are_completed_from_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/models", {"models": [{"name": "smol"}, {"name": "llama"}]})
    daemon.answer("GET /api/v1/jobs?limit=50", {"jobs": [{"job_id": "abcd"}, {"job_id": "ef01"}]})
    assert complete("run", "sm") == ["smol"]
    assert complete("job", "show", "") == ["abcd", "ef01"]
    daemon.answer("GET /api/v1/peers", {"peers": [{"name": "gpu-1", "peer_id": "12D3"}, {"peer_id": "gpu-x"}]})
    assert complete("peers", "ban", "gpu") == ["gpu-1", "gpu-x"]


@pytest.mark.parametrize("name", ["x$(id>&2)", "x;id", "x\nplain,forged", "x y", "x`id`", "x'", "x/..", "xé"])
def test_names_that_a_shell_would_read_are_not_completed(daemon: FakeDaemon, name: str) -> None:
    daemon.answer("GET /api/v1/peers", {"peers": [{"name": name, "peer_id": "12D3"}]})
    assert complete("peers", "ban", "") == ["12D3"]


def test_completion_asks_the_daemon_that_the_words_before_name(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.answer("GET /api/v1/models", {"models": [{"name": "smol"}]})
    assert complete("--home", str(tmp_path / "other"), "run", "") == []
    assert complete("run", "--api", "http://127.0.0.1:1", "") == []


def test_nothing_is_completed_when_no_daemon_answers() -> None:
    assert complete("run", "") == []


def test_settings_are_completed_without_a_daemon() -> None:
    assert complete("config", "set", "market.price_i") == ["market.price_in"]
    assert complete("config", "unset", "log.") == ["log.level", "log.format"]
