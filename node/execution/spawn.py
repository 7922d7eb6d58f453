"""A worker as a process of the operating system: how it is started and ended, and what its end is called.

Where bubblewrap starts it there are three: bubblewrap, which waits for the second; the first process of the new
namespace, with which the kernel ends all others there; and the worker, whose status both pass on.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import psutil
import trio

from node.execution.bubblewrap import box_command
from node.execution.jail import Jail

# Nothing secret reaches a worker. Thread pools sleep while they wait: with spinning ones, two nodes on one
# machine halve each other's speed (102 against 49 tokens/s measured).
_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "PYTHONUNBUFFERED": "1",
}
_ENVIRONMENT_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "PYTHONPATH")
# A worker's parent in a namespace of its own.
_FIRST_PID: Final = 1
_SETTLE_S_MAX: Final = 10.0
COMMAND: Final = (sys.executable, "-P", "-m", "node.execution.engine.worker_main")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a worker may not do, and when it begins."""

    jail: Jail
    memory_bytes_max: int | None = None
    """Of this machine's memory for itself; None: nobody watches."""
    is_held: bool = False
    """It loads its libraries and then waits for ``wake`` before it takes its device."""


class _Told(msgspec.Struct, rename="kebab"):
    """What bubblewrap writes about itself."""

    child_pid: int


class Child:
    """A worker that was started, with bubblewrap around it or without."""

    def __init__(self, process: "subprocess.Popen[bytes]", told: int | None) -> None:
        """``told`` is where bubblewrap tells what it started, now of this object; None: it starts nothing."""
        self._process, self._told, self._is_boxed = process, told, told is not None
        self._first: int | None = None
        """The first process of bubblewrap's namespace."""
        self._first_fd: int | None = None
        self._pid = None if self._is_boxed else process.pid

    async def settle(self) -> None:
        """Learn whom to kill; to be called once. A cancellation waits: it takes bubblewrap 2 ms."""
        if self._told is None:
            return
        told, data = self._told, b""
        self._told = None
        with trio.move_on_after(_SETTLE_S_MAX, shield=True):
            async with trio.lowlevel.FdStream(told) as stream:
                async for part in stream:
                    data += part
        # It may have failed, or been killed: then there is nothing to learn.
        with contextlib.suppress(msgspec.DecodeError, OSError):
            self._first = msgspec.json.decode(data, type=_Told).child_pid
            self._first_fd = os.pidfd_open(self._first)

    @property
    def pid(self) -> int | None:
        """The worker's own, as this process sees it; None until bubblewrap has started it."""
        if self._pid is None and self._first is not None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self._first).children()
                self._pid = children[0].pid if children else None
        return self._pid

    @property
    def status(self) -> int | None:
        """How the worker ended: a negative number is a signal's; None: it has not ended yet."""
        status = self._process.returncode
        # bubblewrap says 128 more than the signal, as a shell does. No worker ends with so much by itself.
        return 128 - status if self._is_boxed and status is not None and status > 128 else status

    def kill(self) -> None:
        """Kill the worker and what is around it; harmless when it has ended."""
        if self._first_fd is None:
            self._process.kill()
            return
        # bubblewrap ends after the first and reaps it; killed as well, it would leave that to the process 1.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first_fd, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when no process is left of it; a cancellation leaves it alone."""
        if self._first_fd is not None:
            # bubblewrap may be killed by hand, and then ends before the worker does.
            await trio.lowlevel.wait_readable(self._first_fd)
        await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    def close(self) -> None:
        """Let go of what was opened to watch it; only once it has ended."""
        if self._first_fd is not None:
            os.close(self._first_fd)
            self._first_fd = None


def spawn(command: Sequence[str], theirs: socket.socket, jail: Jail, environment: Mapping[str, str]) -> Child:
    """Start a worker with its end of the socket; from the main thread only.

    The kernel's parent-death signal follows the thread that forked, and trio's own open_process forks in a worker
    thread that retires after ten idle seconds.

    Raises:
        OSError: it cannot be started.
    """
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    box: list[str] = []
    parent, passed, told = os.getpid(), [theirs.fileno()], None
    if jail.bubblewrap:
        told, telling = os.pipe()
        box = box_command(jail, cuda=environment.get("CUDA_VISIBLE_DEVICES") != "", told=telling)
        parent, passed = _FIRST_PID, [*passed, telling]
    try:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [*box, *command, str(theirs.fileno()), str(parent), msgspec.json.encode(jail)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=passed,
            env={**kept, **_ENVIRONMENT, **environment},
            # Ctrl-C in a terminal goes to the daemon alone, which tells peers before it ends its workers.
            process_group=0,
        )
    except OSError:
        if told is not None:
            os.close(told)
        raise
    finally:
        for descriptor in passed[1:]:
            os.close(descriptor)
    return Child(process, told)


def say_status(status: int | None) -> str:
    """Return what an exit status means; None: it has not ended yet."""
    if status is None:
        return "killed, and still ending"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "an unknown signal"
    hint = ": by hand, or by a kernel that is short of memory" if name == "SIGKILL" else ""
    return f"exit status {status}, {name}{hint}"
