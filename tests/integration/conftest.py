"""What tests with real processes share."""

import shutil
import subprocess

import pytest

from node.execution.bubblewrap import find_bubblewrap

# Asked of the program itself: a finder that finds nothing any more must fail tests, and not skip them.
_PLAIN = ("--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "--proc", "/proc", "true")


@pytest.fixture(scope="session")
def bubblewrap() -> str:
    """The program where this machine lets it work; else empty."""
    program = shutil.which("bwrap")
    if program is None or subprocess.run([program, *_PLAIN], capture_output=True, check=False).returncode:
        return ""
    assert find_bubblewrap(cuda=False) == program
    return program
