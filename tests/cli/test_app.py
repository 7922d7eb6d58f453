import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from node.cli.app import VERBS, exit_of
from node.cli.app import souk as app
from node.errors import AlreadyRunningError, ConfigError, KeyFileError
from node.home import Home
from tests.cli.fakes import FakeDaemon, souk

HEAVY = (
    "trio",
    "libp2p",
    "torch",
    "starlette",
    "hypercorn",
    "rich",
    "msgspec",
    "numpy",
    "cryptography",
    "psutil",
    "PIL",
)
IMPORT_ALL = f"""
import sys
from node.cli.app import VERBS, souk
import click
for name in VERBS:
    assert souk.get_command(click.Context(souk), name) is not None, name
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
assert not loaded, loaded
"""


@pytest.mark.slow
def test_commands_load_nothing_heavy_when_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_verb_explains_itself_when_asked_for_help(verb: str) -> None:
    ran = souk(verb, "--help")
    assert ran.code == 0
    assert "--home DIR" in ran.out and "-o, --output" in ran.out
    command = app.get_command(click.Context(app), verb)
    assert command is not None and command.help


def test_unknown_verb_ends_with_2_and_a_hint() -> None:
    ran = souk("rnu")
    assert ran.code == 2
    assert "rnu" in ran.err and not ran.out


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError(["x"]), 3), (AlreadyRunningError("x"), 9), (KeyFileError("x"), 1)]
)
def test_error_becomes_its_exit_code(error: ConfigError, code: int) -> None:
    assert exit_of(error) == code


def test_system_error_becomes_one_line_and_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "config.toml"))

    monkeypatch.setattr(app, "main", refuse)
    ran = souk("init")
    assert (ran.code, ran.err) == (1, f"souk: {tmp_path / 'config.toml'}: Permission denied\n")


@pytest.mark.slow
def test_full_disk_under_standard_output_ends_with_one_line() -> None:
    line = [sys.executable, "-m", "node.cli", "models", "verify"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "souk: No space left on device\n")


@pytest.mark.slow
def test_verb_ends_quietly_with_0_when_nobody_reads_its_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "node.cli", "config", "schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_of_all_verbs_count_before_and_after_the_verb(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": []})
    for line in (
        ["-o", "json", "devices"],
        ["devices", "-o", "json"],
        ["--json", "devices"],
        ["devices", "--json"],
    ):
        assert souk(*line).json() == {"schema": 1, "devices": []}


def test_home_option_wins_over_the_environment_when_both_are_given(daemon: FakeDaemon, home: Home) -> None:
    daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": []})
    assert souk("--home", str(home.path), "devices").code == 0
    assert souk("devices", "--home", "/nonexistent").code == 4


def test_version_is_printed_when_asked() -> None:
    assert souk("--version").out.startswith("souk 0.")
