"""bubblewrap around a worker, where it is installed and works: namespaces of its own, no file but what it reads.

In them a worker sees no other process, no network, no shared memory of others and no home. The jail itself
(``jail.py``) is entered inside, as without. How the process in between is lived with is ``spawn.py``'s business.
Design: reliability.md, section 3.7; decision 0013.
"""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from node.execution.jail import Jail, python_paths, system_paths

log = logging.getLogger(__name__)

# No --unshare-user: bubblewrap adds it where it needs it. Without, root still reads models of other users.
_NAMESPACES: Final = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "worker")
# The program, its libraries and what is to be read must be found by the names that workers are told: each may lie
# behind links, of which not every one is followed inside.
_LOOK: Final = "import os, sys, node.execution.jail; [os.stat(path) for path in sys.argv[1:]]"
# 0.1 s here; a machine that swaps takes its time.
_TRIAL_S_MAX: Final = 20.0
# What --proc and --dev bring by themselves. Below /dev there may be more: a model store in /dev/shm.
_BROUGHT: Final = ("/proc", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(slots=True)
class Bubblewrap:
    """The program through which a node's workers are started; given up for good when it once fails to."""

    program: str = ""
    """Empty: none, and workers are started plainly."""

    def give_up(self, cause: str) -> None:
        """Start no more workers through it; the log says so once."""
        if self.program:
            log.warning("bubblewrap given up", extra={"program": self.program, "cause": cause})
        self.program = ""


def find_bubblewrap(readable: Sequence[str] = (), *, cuda: bool) -> str:
    """Return the program if it works here and what workers are to read is found inside; else empty. Blocks.

    The log says why an installed one is not used.
    """
    program = shutil.which("bwrap")
    return program if program is not None and _works(program, readable, cuda=cuda) else ""


def _works(program: str, readable: Sequence[str], *, cuda: bool) -> bool:
    # What is missing outside as well is no fault of bubblewrap's.
    there = [path for path in readable if os.path.exists(path)]
    try:
        box = box_command(Jail(mode="auto", readable=tuple(there), bubblewrap=program), cuda=cuda)
        # Our own command line. It ends with the thread that forks it, which waits for it.
        ran = subprocess.run(  # noqa: S603
            [*box, sys.executable, "-P", "-c", _LOOK, *there],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_S_MAX,
            check=False,
        )
        lines = ran.stderr.decode(errors="replace").strip().splitlines() if ran.returncode else []
        cause = lines[-1] if lines else f"exit status {ran.returncode}"
        works = ran.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as exc:
        cause, works = str(exc), False
    if not works:
        log.info("bubblewrap not used", extra={"program": program, "cause": cause})
    return works


def box_command(jail: Jail, *, cuda: bool) -> list[str]:
    """Return the words before a worker's own command line. Blocks: it looks at what is to be shown."""
    system = system_paths(cuda=cuda)
    # The CUDA part is not run on a GPU yet.
    cards = [path for path in system if path.startswith("/dev/nvidia")]
    files = [path for path in system if path not in _BROUGHT and path not in cards]
    command = [
        jail.bubblewrap,
        "--die-with-parent",
        "--new-session",
        *_NAMESPACES,
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    for path in cards:
        command += ["--dev-bind-try", path, path]
    for source, path in _binds(map(os.path.abspath, (*jail.readable, *files, *python_paths()))):
        command += ["--ro-bind-try", source, path]
    for path in map(os.path.abspath, jail.writable):
        command += ["--bind", path, path]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--"]


def _binds(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return what is shown where: each path, and what it links to, unless it lies below another one."""
    shown: dict[PurePath, str] = {}
    wanted = {place for path in paths for place in (path, os.path.realpath(path))}
    for place in sorted(map(Path, wanted)):
        # Below a folder that is shown, the same file or link is there already.
        if os.path.exists(place) and not any(parent in shown for parent in place.parents):
            shown[place] = os.path.realpath(place)
    return [(source, str(place)) for place, source in shown.items()]
