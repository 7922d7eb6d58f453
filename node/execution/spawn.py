"""A worker as a process of the operating system: how it is started, and what its end is called."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from node.execution.jail import Jail

# Nothing secret reaches a worker. Thread pools sleep while they wait: with spinning ones, two nodes on one
# machine halve each other's speed (102 against 49 tokens/s measured).
_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "PYTHONUNBUFFERED": "1",
}
_ENVIRONMENT_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "PYTHONPATH")
COMMAND: Final = (sys.executable, "-P", "-m", "node.execution.engine.worker_main")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a worker may not do, and when it begins."""

    jail: Jail
    memory_bytes_max: int | None = None
    """Of this machine's memory for itself; None: nobody watches."""
    is_held: bool = False
    """It loads its libraries and then waits for ``wake`` before it takes its device."""


def spawn(
    command: Sequence[str], theirs: socket.socket, jail: Jail, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a worker with its end of the socket; from the main thread only.

    The kernel's parent-death signal follows the thread that forked, and trio's own open_process forks in a worker
    thread that retires after ten idle seconds.

    Raises:
        OSError: it cannot be started.
    """
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        [*command, str(theirs.fileno()), str(os.getpid()), msgspec.json.encode(jail)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env={**kept, **_ENVIRONMENT, **environment},
        # Ctrl-C in a terminal goes to the daemon alone, which tells peers before it ends its workers.
        process_group=0,
    )


async def wait_end(process: "subprocess.Popen[bytes]") -> None:
    """Return when the process has ended; a cancellation leaves it alone."""
    await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)


def say_status(status: int | None) -> str:
    """Return what an exit status means; None: it has not ended yet."""
    if status is None:
        return "killed, and still ending"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "an unknown signal"
    hint = ": by hand, or by a kernel that is short of memory" if name == "SIGKILL" else ""
    return f"exit status {status}, {name}{hint}"
