"""One worker process from spawn to death: frames in and out, its jobs, and the patience with it.

What to load and when to start another one is ``device_worker.py``'s business. A worker is trusted with nothing
but its jobs: garbage or silence on the socket ends it.
"""

import itertools
import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import trio
from trio import TaskStatus

from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.execution.frames import (
    LENGTH_BYTES,
    Cancel,
    Failed,
    FromWorker,
    Loaded,
    Measured,
    Prepared,
    Ready,
    Setup,
    Step,
    ToWorker,
    Unloaded,
    decode_from_worker,
    encode_frame,
    frame_length,
)
from node.execution.interface import Piece

log = logging.getLogger(__name__)

Answer: TypeAlias = Loaded | Unloaded | Prepared | Measured
Event: TypeAlias = Answer | Piece | ExecutionError

MODULE: Final = "node.execution.engine.worker"
# Three frames per job; what does not fit waits, and a worker that reads nothing is found by its silence.
_OUTBOX_FRAMES: Final = 1024
# Its socket closes a moment before a process ends; killed in between, it could not tell why it did.
_EXIT_S: Final = 0.5
_READ_BYTES: Final = 1 << 16
_REFUSALS: Final = ("model_unknown", "context_exceeded", "input")
# Nothing secret reaches a worker. Thread pools sleep while they wait: with spinning ones, two nodes on one
# machine halve each other's speed (102 against 49 tokens/s measured).
_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "PYTHONUNBUFFERED": "1",
}
_ENVIRONMENT_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "PYTHONPATH")


class WorkerProcess:
    """A running worker. Requests are numbered; each has a channel on which its events arrive."""

    def __init__(
        self,
        setup: Setup,
        *,
        silence_s_max: float,
        environment: Mapping[str, str],
        command: Sequence[str] = (sys.executable, "-P", "-m", MODULE),
    ) -> None:
        self._setup = setup
        self._silence_s_max = silence_s_max
        self._environment = environment
        # Tests bring workers that misbehave.
        self._command = command
        self._numbers = itertools.count(1)
        self._events: dict[int, trio.MemorySendChannel[Event]] = {}
        self._silences: dict[int, float] = {}
        self._outbox, self._outgoing = trio.open_memory_channel[bytes](_OUTBOX_FRAMES)
        self._patience = trio.CancelScope()
        self._death: WorkerDiedError | None = None
        self._ready = False
        self.pid: int | None = None

    @property
    def jobs(self) -> int:
        """Requests that wait for something."""
        return len(self._events)

    async def run(self, *, task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED) -> None:
        """Spawn the worker and serve it until it dies or this is cancelled; no process is left then.

        It dies when it ends, sends garbage, or owes something and is silent for too long; ``death`` tells.

        Raises:
            WorkerDiedError: it died before it was ready; later deaths return.
        """
        ours, theirs = socket.socketpair()
        try:
            # From the main thread: the kernel's parent-death signal follows the thread that forked, and trio's
            # own open_process forks in a worker thread that retires after ten idle seconds.
            process = self._spawn(theirs)
        except OSError as exc:
            ours.close()
            raise WorkerDiedError(f"the worker cannot be started: {exc}", code="worker_died") from exc
        finally:
            theirs.close()
        self.pid = process.pid
        cause, grace_s = "the worker was stopped", 0.0
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                cause, grace_s = await self._converse(stream, task_status), _EXIT_S
        finally:
            status = await _end(process, grace_s)
            self._bury(WorkerDiedError(f"{cause} (exit status {status})", code="worker_died"))
        if not self._ready:
            assert self._death is not None
            raise self._death

    async def send(self, frame: ToWorker) -> None:
        """Queue one frame; waits while the worker is far behind.

        Raises:
            WorkerDiedError: there is nobody to read it.
        """
        if self._death is not None:
            raise self._death
        try:
            await self._outbox.send(encode_frame(frame))
        except trio.BrokenResourceError as exc:
            raise self._death or WorkerDiedError("the worker is gone", code="worker_died") from exc

    def open_request(self, events_max: int, *, silence_s_max: float | None = None) -> "Request":
        """Return a new request; use it with ``with``: leaving frees whatever the worker holds for it.

        ``silence_s_max`` is for requests that keep the worker busy without a sign of life.

        Raises:
            WorkerDiedError: the worker is gone.
        """
        if self._death is not None:
            raise self._death
        number = next(self._numbers)
        sender, receiver = trio.open_memory_channel[Event](events_max)
        self._events[number] = sender
        self._silences[number] = silence_s_max or self._silence_s_max
        self._show_patience()
        return Request(self, number, receiver)

    def close_request(self, number: int, *, finished: bool) -> None:
        """Forget a request, and tell the worker unless it has ended there by itself."""
        self._events.pop(number, None)
        self._silences.pop(number, None)
        self._show_patience()
        if finished or self._death is not None:
            return
        try:
            self._outbox.send_nowait(encode_frame(Cancel(request=number)))
        except trio.WouldBlock:
            # A thousand frames unread: it is stuck, and its slots would stay taken.
            self._patience.cancel()
        except trio.BrokenResourceError:
            pass

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
        return subprocess.Popen(  # noqa: S603  our own interpreter and module
            [*self._command, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**kept, **_ENVIRONMENT, **self._environment},
            # Ctrl-C in a terminal goes to the daemon alone, which tells peers before it ends its workers.
            process_group=0,
        )

    async def _converse(self, stream: trio.SocketStream, task_status: TaskStatus[Ready]) -> str:
        """Move frames both ways and return why it ended."""
        cause = "the worker ended"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream)
            with self._patience:
                cause = await self._read(stream, task_status)
            if self._patience.cancelled_caught:
                cause = f"the worker held {self.jobs} jobs and was silent for too long"
            nursery.cancel_scope.cancel()
        return cause

    async def _write(self, stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(encode_frame(self._setup))
            async for data in self._outgoing:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader finds out why

    async def _read(self, stream: trio.SocketStream, task_status: TaskStatus[Ready]) -> str:
        buffer = bytearray()
        while True:
            try:
                data = await stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return "the worker ended"
            buffer += data
            self._show_patience()
            try:
                for frame in _take_frames(buffer):
                    if isinstance(frame, Ready) and not self._ready:
                        self._ready = True
                        task_status.started(frame)
                    else:
                        self._deliver(frame)
            except ValueError as exc:
                return f"the worker sent garbage: {exc}"

    def _deliver(self, frame: FromWorker) -> None:
        match frame:
            case Step(pieces=pieces):
                for piece in pieces:
                    event = Piece(tokens=piece.tokens, text=piece.text, finish=piece.finish)
                    self._deliver_event(piece.request, event)
            case Failed(request=request, code=code, message=message):
                kind = JobRefusedError if code in _REFUSALS else ExecutionError
                self._deliver_event(request, kind(message, code=code))
            case Loaded() | Unloaded() | Prepared() | Measured():
                self._deliver_event(frame.request, frame)
            case _:
                raise ValueError(f"unexpected {type(frame).__name__}")

    def _deliver_event(self, request: int, event: Event) -> None:
        channel = self._events.get(request)
        if channel is None:
            return  # cancelled a moment ago
        try:
            channel.send_nowait(event)
        except trio.WouldBlock:
            raise ValueError(f"request {request} was given more than it asked for") from None
        except trio.BrokenResourceError:
            pass

    def _show_patience(self) -> None:
        """Wait for a worker that owes something only so long after its last sign of life."""
        self._patience.deadline = trio.current_time() + max(self._silences.values(), default=math.inf)

    def _bury(self, death: WorkerDiedError) -> None:
        self._death = death
        self._outgoing.close()
        for channel in self._events.values():
            # Closing is what a reader finds after the pieces that did arrive.
            channel.close()
        self._events.clear()

    @property
    def death(self) -> WorkerDiedError | None:
        """Why it ended, once it has."""
        return self._death


class Request:
    """Something asked of a worker; its events arrive in order."""

    def __init__(self, process: WorkerProcess, number: int, events: trio.MemoryReceiveChannel[Event]) -> None:
        self.number = number
        self._process, self._events = process, events
        self._finished = False

    def __enter__(self) -> "Request":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free whatever the worker holds for it; harmless when nothing is left."""
        self._process.close_request(self.number, finished=self._finished)
        self._events.close()
        self._finished = True

    async def send(self, frame: ToWorker) -> None:
        """Pass ``frame`` to the worker; see ``WorkerProcess.send``."""
        await self._process.send(frame)

    async def receive(self) -> Answer | Piece:
        """Return the next event.

        Raises:
            ExecutionError: the worker refused or failed this request.
            WorkerDiedError: the worker ended.
        """
        try:
            event = await self._events.receive()
        except trio.EndOfChannel:
            self._finished = True
            raise self._process.death or WorkerDiedError("the worker is gone", code="worker_died") from None
        if isinstance(event, ExecutionError):
            self._finished = True
            raise event
        if not isinstance(event, Prepared) and not (isinstance(event, Piece) and event.finish is None):
            self._finished = True
        return event


async def _end(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """Return the exit status of ``process``, which is killed unless it ends by itself within ``grace_s``."""
    with trio.CancelScope(shield=True):
        with trio.move_on_after(grace_s):
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        process.kill()
        await trio.to_thread.run_sync(process.wait)
    assert process.returncode is not None
    return process.returncode


def _take_frames(buffer: bytearray) -> list[FromWorker]:
    """Cut whole frames off the front of ``buffer``; ``ValueError`` when it holds something else."""
    frames, at = [], 0
    while len(buffer) - at >= LENGTH_BYTES:
        length = frame_length(bytes(buffer[at : at + LENGTH_BYTES]))
        end = at + LENGTH_BYTES + length
        if len(buffer) < end:
            break
        frames.append(decode_from_worker(bytes(buffer[at + LENGTH_BYTES : end])))
        at = end
    del buffer[:at]
    return frames
