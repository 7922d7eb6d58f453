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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import psutil
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
# A worker's parent in a namespace of its own.
_FIRST_PID: Final = 1
# bubblewrap tells after 2 ms; a machine that swaps takes its time.
_SETTLE_S_MAX: Final = 10.0
_FAREWELL_S: Final = 0.5
# A process that a signal ends is told by a shell, and by bubblewrap, as this and the signal's number.
_BY_SIGNAL: Final = 128
# What bubblewrap ends with when it fails, as does a worker that cannot say why.
BOX_FAULT: Final = 1
COMMAND: Final = (sys.executable, "-P", "-m", "node.execution.engine.worker_main")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a worker may not do, and when it begins."""

    jail: Jail
    memory_bytes_max: int | None = None
    """Of this machine's memory for itself; None: nobody watches."""
    is_held: bool = False
    """It loads its libraries and then waits for ``wake`` before it takes its device."""
    on_box_failed: Callable[[str], None] | None = None
    """Hears why bubblewrap could not start it, before its death is told."""


class _Told(msgspec.Struct, rename="kebab"):
    """What bubblewrap writes about itself."""

    child_pid: int


class Child:
    """A worker that was started, with bubblewrap around it or without."""

    def __init__(self, process: "subprocess.Popen[bytes]", told: trio.lowlevel.FdStream | None) -> None:
        """``told`` is where bubblewrap tells what it started, now of this object; None: it starts nothing."""
        self._process, self._told, self._is_boxed = process, told, told is not None
        self._data = b""
        self._first: int | None = None
        """The first process of bubblewrap's namespace."""
        self._first_fd: int | None = None
        self.pid = None if self._is_boxed else process.pid
        """The worker's own number, as this process sees it; None until ``look`` has found it."""

    async def settle(self) -> bool:
        """Learn whom to kill; to be called once. Return whether there is a worker, or bubblewrap began one."""
        if self._told is None:
            return True
        try:
            with trio.move_on_after(_SETTLE_S_MAX):
                await self._hear(self._told)
        finally:
            # Given up between these two, what bubblewrap has forked would stay.
            with trio.move_on_after(_FAREWELL_S, shield=True):
                await self._hear(self._told)
            has_begun = self._learn()
        return has_begun

    async def _hear(self, told: trio.lowlevel.FdStream) -> None:
        async for part in told:
            self._data += part

    def _learn(self) -> bool:
        try:
            first = msgspec.json.decode(self._data, type=_Told).child_pid
        except msgspec.DecodeError:
            return False
        with contextlib.suppress(OSError, psutil.Error):
            descriptor = os.pidfd_open(first)
            # Else it has ended and was reaped, and the number may be somebody else's by now.
            if psutil.Process(first).ppid() == self._process.pid:
                self._first, self._first_fd = first, descriptor
            else:
                os.close(descriptor)
        return True

    def look(self) -> None:
        """Find the worker's own number, which bubblewrap tells nobody. Blocks: it reads all of /proc."""
        if self.pid is None and self._first is not None:
            with contextlib.suppress(psutil.Error, OSError):
                self.pid = next((it.pid for it in psutil.Process(self._first).children()), None)

    @property
    def is_boxed(self) -> bool:
        """Whether bubblewrap starts it."""
        return self._is_boxed

    @property
    def status(self) -> int | None:
        """How the worker ended: a negative number is a signal's; None: it has not ended yet."""
        status = self._process.returncode
        if self._is_boxed and status is not None and _BY_SIGNAL < status <= _BY_SIGNAL + signal.SIGRTMAX:
            return _BY_SIGNAL - status
        return status

    def kill(self) -> None:
        """Kill the worker and what is around it; harmless when it has ended."""
        if self._first_fd is not None:
            # bubblewrap ends after the first and reaps it; killed as well, it would leave that to the process 1.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_fd, signal.SIGKILL)
        elif self._is_boxed and self._process.poll() is None:
            # With what it may have forked untold: it leads a group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        else:
            self._process.kill()

    def kill_outer(self) -> None:
        """Kill bubblewrap too, which may be stopped or stuck; harmless when it has ended."""
        self._process.kill()

    async def wait(self) -> None:
        """Return when no process is left of it; a cancellation leaves it alone."""
        if self._first_fd is not None:
            # bubblewrap may be killed by hand, and then ends before the worker does.
            await trio.lowlevel.wait_readable(self._first_fd)
        await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        if self._first_fd is not None:
            # bubblewrap does not always reap it. Then it is ours where this is process 1, and else process 1's.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._first_fd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  it does not wait

    async def close(self) -> None:
        """Let go of what was opened to watch it; only once it has ended."""
        if self._told is not None:
            await self._told.aclose()
        if self._first_fd is not None:
            os.close(self._first_fd)
            self._first_fd = None


def spawn(
    command: Sequence[str],
    theirs: socket.socket,
    *,
    jail: Jail,
    environment: Mapping[str, str],
    box: Sequence[str] = (),
) -> Child:
    """Start a worker with its end of the socket, inside ``box`` (``box_command``); from the main thread only.

    The kernel's parent-death signal follows the thread that forked, and trio's own open_process forks in a worker
    thread that retires after ten idle seconds.

    Raises:
        OSError: it cannot be started.
    """
    kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    parent, passed, told = os.getpid(), [theirs.fileno()], None
    if box:
        told, telling = os.pipe()
        box = [box[0], "--info-fd", str(telling), *box[1:]]
        # The end for reading, too: where this process is gone, SIGPIPE would end bubblewrap between its fork and
        # its first word to the child, which would wait for that for ever.
        parent, passed = _FIRST_PID, [*passed, telling, told]
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
        if told is not None:
            os.close(telling)
    return Child(process, None if told is None else trio.lowlevel.FdStream(told))


def say_status(status: int | None) -> str:
    """Return what an exit status means; None: it has not ended yet."""
    if status is None:
        return "killed, and still ending"
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "an unknown signal"
    hint = ": by hand, or by a kernel that is short of memory" if name == "SIGKILL" else ""
    return f"exit status {status}, {name}{hint}"
