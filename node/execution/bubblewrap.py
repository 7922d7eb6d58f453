"""bubblewrap around a worker, where it is installed and works: namespaces of its own, no file but what it reads.

In them a worker sees no other process, no network, no shared memory of others and no home. The jail itself
(``jail.py``) is entered inside, as without. How the process in between is lived with is ``spawn.py``'s business.
Design: reliability.md, section 3.7; decision 0013.
"""

import functools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Final

from node.execution.jail import Jail, python_paths, system_paths

log = logging.getLogger(__name__)

# No --unshare-user: bubblewrap adds it where it needs it. Without, root still reads models of other users.
_NAMESPACES: Final = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "worker")
# The program, its libraries and the interpreter must be found, too: an interpreter may lie behind links.
_TRIAL: Final = (sys.executable, "-P", "-c", "import node.execution.jail")
# 0.1 s here; a machine that swaps takes its time.
_TRIAL_S_MAX: Final = 20.0


def find_bubblewrap(*, cuda: bool) -> str:
    """Return the program, tried once in this process; empty where there is none, or it fails here. Blocks.

    The log says why an installed one is not used.
    """
    program = shutil.which("bwrap")
    return program if program is not None and _works(program, cuda=cuda) else ""


@functools.cache
def _works(program: str, *, cuda: bool) -> bool:
    command = [*box_command(Jail(mode="auto", bubblewrap=program), cuda=cuda), *_TRIAL]
    try:
        # Our own command line. It ends with the thread that forks it, which waits for it.
        ran = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_S_MAX, check=False
        )
        lines = ran.stderr.decode(errors="replace").strip().splitlines() if ran.returncode else []
        cause = lines[-1] if lines else f"exit status {ran.returncode}"
        works = ran.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as exc:
        cause, works = str(exc), False
    if not works:
        log.info("bubblewrap not used", extra={"program": program, "cause": cause})
    return works


def box_command(jail: Jail, *, cuda: bool, told: int | None = None) -> list[str]:
    """Return the words before a worker's own command line.

    To the descriptor ``told`` bubblewrap writes which process is the first of the new namespace.
    """
    paths = [os.path.abspath(it) for it in (*jail.readable, *system_paths(cuda=cuda), *python_paths())]
    command = [jail.bubblewrap, "--die-with-parent", "--new-session", *_NAMESPACES]
    if told is not None:
        command += ["--info-fd", str(told)]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in paths:
        # --dev has null, zero and random. The CUDA part is not run on a GPU yet.
        if path.startswith("/dev/nvidia"):
            command += ["--dev-bind-try", path, path]
    for source, path in _binds(path for path in paths if not path.startswith(("/proc", "/dev/"))):
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
        if place.exists() and not any(parent in shown for parent in place.parents):
            shown[place] = os.path.realpath(place)
    return [(source, str(place)) for place, source in shown.items()]
