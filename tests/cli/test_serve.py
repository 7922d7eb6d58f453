import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.home import Home
from tests.cli.fakes import souk

PROGRAM = (sys.executable, str(Path(__file__).parent / "fake_serve.py"))
pytestmark = pytest.mark.slow


@contextmanager
def serving(behaviour: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [*PROGRAM, behaviour, "serve", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], word: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return line
    raise AssertionError(f"ended without {word!r}")


def test_serve_hears_that_it_has_to_end_while_its_configuration_does_not_come(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    os.mkfifo(config)
    with serving("runs", "--config", str(config)) as process:
        config.write_text("")
        wait_for(process, "/ip4/1.2.3.4/tcp/5")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_0_and_clears_up_when_told_by_a_signal(home: Home, number: signal.Signals) -> None:
    with serving("runs") as process:
        wait_for(process, "/ip4/1.2.3.4/tcp/5")
        assert home.is_locked()
        process.send_signal(number)
        assert process.wait(10) == 0
    assert not home.is_locked() and home.read_api() is None


def test_serve_does_not_wait_when_interrupted_twice() -> None:
    with serving("lingers") as process:
        wait_for(process, "address")
        process.send_signal(signal.SIGINT)
        wait_for(process, "lingering")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_serve_ends_with_0_when_the_daemon_was_told_to_stop() -> None:
    with serving("returns") as process:
        assert process.wait(10) == 0


def test_serve_tells_a_fault_of_the_world_in_one_line() -> None:
    with serving("fails") as process:
        _, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (1, "souk: the port is in use\n")


def test_serve_ends_with_9_and_names_the_holder_when_the_home_is_taken(home: Home) -> None:
    with serving("runs") as process:
        wait_for(process, "ready")
        ran = souk("serve")
        assert ran.code == 9 and f"pid {process.pid}" in ran.err and str(home.path) in ran.err


def test_serve_deletes_an_ephemeral_home(home: Home) -> None:
    with serving("runs", "--ephemeral") as process:
        folder = Path(wait_for(process, "home").split()[1])
        assert folder.is_dir() and folder != home.path
        process.terminate()
        assert process.wait(10) == 0
    assert not folder.exists() and not home.path.exists()


def test_serve_ends_with_3_and_names_every_fault_of_its_settings(home: Home) -> None:
    home.create()
    home.config_path.write_text('[api]\nbimd = "x"\n')
    ran = souk("serve", "--set", "node.rule=client", "--bootstrap", "nowhere")
    assert ran.code == 3
    assert f"{home.config_path}:2: api.bimd: unknown key (did you mean bind?)" in ran.err
    assert "--set node.rule: unknown setting (did you mean node.role?)" in ran.err


def test_serve_wants_the_file_that_was_named() -> None:
    ran = souk("serve", "--config", "/nonexistent.toml")
    assert ran.code == 3 and "no such file" in ran.err
