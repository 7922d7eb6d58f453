import pytest
from click.shell_completion import ShellComplete

from node.cli.app import souk as app
from node.cli.completion import SHELLS, complete_job, complete_model
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


def test_models_and_jobs_are_completed_from_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/models", {"models": [{"name": "smol"}, {"name": "llama"}]})
    daemon.answer("GET /api/v1/jobs?limit=50", {"jobs": [{"job_id": "abcd"}, {"job_id": "ef01"}]})
    assert complete_model(None, None, "sm") == ["smol"]  # type: ignore[arg-type]  # neither is looked at
    assert complete_job(None, None, "") == ["abcd", "ef01"]  # type: ignore[arg-type]  # as above


def test_nothing_is_completed_when_no_daemon_answers() -> None:
    assert complete_model(None, None, "") == []  # type: ignore[arg-type]  # as above
