"""``python -m node.execution.engine.worker_main <socket fd> <parent pid> <jail>``: how a worker process begins.

It ties its life to its parent's, enters the jail while it has one thread, and only then imports torch and goes to
work in ``worker.py``. Whatever ends it is told to the daemon in its last frame.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import tempfile
import traceback
from typing import Final

import msgspec

from node.execution.engine.link import Link
from node.execution.frames import Fault
from node.execution.jail import Jail, enter_jail, python_paths, system_paths

_PR_SET_PDEATHSIG: Final = 1
EXIT_FAULT: Final = 1
EXIT_ORPHAN: Final = 3


def main() -> None:
    """Serve the daemon at the other end of the socket until it is gone."""
    _die_with_parent(int(sys.argv[2]))
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    # Whatever a library prints must not look like output of the daemon.
    os.dup2(2, 1)
    try:
        tier = _confine(msgspec.json.decode(sys.argv[3], type=Jail))
        # Nothing of what is imported becomes garbage. Looking for it took a quarter of a cold start's CPU time
        # (2.1 s, and 1.5 s without), and each full collection later would look through it again.
        gc.disable()
        # Not before: torch starts threads when it is imported, and a jail holds only those that come later.
        from node.execution.engine.worker import serve

        gc.freeze()
        gc.enable()
        serve(link, tier)
    except Exception as exc:  # the edge of the worker: its parent hears why it ends, and starts another one
        traceback.print_exc()
        with contextlib.suppress(OSError):
            link.send(_fault(exc))


def _confine(jail: Jail) -> str:
    if not jail.writable and not jail.impossible:
        # Libraries look for a temporary folder when they are imported, and fail where they may write nowhere.
        tempfile.tempdir = os.devnull
    cuda = os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    readable = (*jail.readable, *system_paths(cuda=cuda), *python_paths())
    return enter_jail(msgspec.structs.replace(jail, readable=readable))


def _fault(exc: Exception) -> Fault:
    try:
        from node.execution.engine.faults import tell_fault
    except ImportError:
        return Fault(code="worker_fault", message="torch cannot be imported; the log of the daemon has why")
    return tell_fault(exc)


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux only)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_ORPHAN)


if __name__ == "__main__":
    main()
    # Not through the interpreter's teardown: the reader thread may hold a lock of a library.
    os._exit(EXIT_FAULT)
