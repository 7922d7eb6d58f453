import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("setup", "demo", "test", "models", "screenshot")
SCRIPTS = [*(ROOT / "scripts" / name for name in NAMES), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_and_parses(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def run_setup(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"SOUK_VENV": str(tmp_path / "venv"), "PYTHON": sys.executable} | variables
    command = [str(ROOT / "scripts" / "setup")]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_setup_names_the_packages_in_one_line_when_it_cannot_compile(tmp_path: Path) -> None:
    done = run_setup(tmp_path, CC="false")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sudo apt-get install build-essential libgmp-dev python3-dev python3-venv" in line
    assert not (tmp_path / "venv").exists()


def test_setup_names_the_python_it_needs_when_it_finds_another(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    done = run_setup(tmp_path, PYTHON=str(old))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "3.11 or newer" in line and "Python 3.9.2" in line
