"""One worker process from spawn to death: frames in and out, its jobs, and the patience with it.

What to load and when to start another one is ``device_worker.py``'s business. A worker is trusted with nothing
but its jobs: garbage or silence on the socket ends it.
"""

import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from trio import TaskStatus

from node.errors import ExecutionError, WorkerDiedError
from node.execution.answers import ANSWERS, Answer, Event, error_of, take_frames, to_piece
from node.execution.bubblewrap import box_command
from node.execution.frames import (
    Cancel,
    DeviceMeasured,
    Failed,
    Fault,
    FromWorker,
    Loaded,
    Measured,
    Prepare,
    Prepared,
    PrepareItems,
    Probed,
    Ready,
    Scored,
    Setup,
    Start,
    Step,
    ToWorker,
    Unloaded,
    encode_frame,
)
from node.execution.interface import Piece
from node.execution.jail import Jail
from node.execution.spawn import BOX_FAULT, COMMAND, Child, WorkerLimits, say_status, spawn
from node.execution.watchdog import MEMORY_PERIOD_S, Patience, Phase, resident_bytes

log = logging.getLogger(__name__)

# Three frames per job; what does not fit waits, and a worker that reads nothing is found by its silence.
_OUTBOX_FRAMES: Final = 1024
# Its socket closes a moment before a process ends; killed in between, it could not tell why it did.
_EXIT_S: Final = 0.5
# A process that held much memory may take seconds to go; its jobs do not wait for that.
_TOLD_S: Final = 0.3
_READ_BYTES: Final = 1 << 16
_NO_LIMITS: Final = WorkerLimits(jail=Jail(mode="off"))


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why a worker ended, for machines and for people."""

    code: str
    text: str
    has_begun: bool = True


class WorkerProcess:
    """A running worker. Requests are numbered; each has a channel on which its events arrive."""

    def __init__(
        self,
        setup: Setup,
        *,
        silence_s_max: float,
        environment: Mapping[str, str],
        limits: WorkerLimits = _NO_LIMITS,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._setup = setup
        self._environment = environment
        self._limits, self._memory_bytes_max = limits, limits.memory_bytes_max
        # Tests bring workers that misbehave.
        self._command = command
        self._numbers = itertools.count(1)
        self._events: dict[int, trio.MemorySendChannel[Event]] = {}
        self._expected: dict[int, type[Answer | Piece]] = {}
        """What may come next for a request; nothing while it was asked for nothing."""
        self._silences: dict[int, float] = {}
        self._patience = Patience(silence_s_max)
        self._alarm = trio.CancelScope()
        self._is_stuffed = False
        self._has_work = trio.Event()
        self._outbox, self._outgoing = trio.open_memory_channel[bytes](_OUTBOX_FRAMES)
        self._wanted = trio.Event()
        if not limits.is_held:
            self._wanted.set()
        self._death: WorkerDiedError | None = None
        self._over = trio.Event()
        self._ready: Ready | None = None
        self._decided = trio.Event()
        """It is ready, or dead."""
        self._dead = trio.Event()
        self._child: Child | None = None
        self._is_heard = False
        """It has said something."""

    @property
    def pid(self) -> int | None:
        """Its process; None before there is one, or before ``look`` has found it."""
        return None if self._child is None else self._child.pid

    @property
    def jobs(self) -> int:
        """Requests that wait for something."""
        return len(self._events)

    async def run(self, *, task_status: TaskStatus[Ready] = trio.TASK_STATUS_IGNORED) -> None:
        """Spawn the worker and serve it until it dies or this is cancelled; no process is left then.

        It dies when it ends, sends garbage, owes something and is silent for too long, or holds more memory than
        it may; ``death`` tells.

        Raises:
            WorkerDiedError: it died before it was ready; later deaths return.
        """
        child, ours = await self._spawn()
        self._child = child
        cause, grace_s = _Cause("worker_died", "the worker was stopped"), 0.0
        try:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                if await child.settle():
                    cause = await self._converse(stream, task_status)
                else:
                    cause = _Cause("worker_died", "bubblewrap started no worker", has_begun=False)
                # What is silent or too large is not waited for.
                grace_s = _EXIT_S if cause.code not in ("worker_hung", "worker_memory") else 0.0
        finally:
            await self._end(child, cause, grace_s)
        if self._ready is None:
            assert self._death is not None
            raise self._death

    async def _spawn(self) -> tuple[Child, socket.socket]:
        """Return the process, and this end of its socket. Raises: WorkerDiedError."""
        jail, box, child = self._limits.jail, list[str](), None
        death = "the worker was stopped"
        ours, theirs = socket.socketpair()
        try:
            if jail.bubblewrap:
                cuda = self._environment.get("CUDA_VISIBLE_DEVICES") != ""
                make = partial(box_command, jail, cuda=cuda)
                box = await trio.to_thread.run_sync(make, abandon_on_cancel=True)
            child = spawn(self._command, theirs, jail=jail, environment=self._environment, box=box)
            return child, ours
        except OSError as exc:
            death = f"the worker cannot be started: {exc}"
            if isinstance(exc, FileNotFoundError | PermissionError):
                self._give_up_box(death)
            raise WorkerDiedError(death, code="worker_died") from exc
        finally:
            theirs.close()
            if child is None:
                ours.close()
                self._bury(WorkerDiedError(death, code="worker_died"))
                self._over.set()

    def wake(self, *, memory_bytes_max: int | None) -> None:
        """Let a worker that was held take its device, and no more of this machine's memory than that."""
        self._memory_bytes_max = memory_bytes_max
        self._wanted.set()

    @property
    def is_held(self) -> bool:
        """Whether it waits for ``wake``."""
        return not self._wanted.is_set()

    async def wait_woken(self) -> None:
        """Return once it was woken, or at once where it was not held."""
        await self._wanted.wait()

    async def wait_ready(self) -> Ready:
        """Return what it told of its device.

        Raises:
            WorkerDiedError: it died before.
        """
        await self._decided.wait()
        if self._ready is None:
            assert self._death is not None
            raise self._death
        return self._ready

    async def wait_dead(self) -> None:
        """Return when ``death`` says why it serves no more; its process may still hold memory."""
        await self._dead.wait()

    async def wait_over(self) -> None:
        """Return when no process is left of it."""
        await self._over.wait()

    async def send(self, frame: ToWorker) -> None:
        """Queue one frame; waits while the worker is far behind.

        Raises:
            WorkerDiedError: there is nobody to read it.
        """
        if self._death is not None:
            raise self._death
        # Before it is sent: the answer may be here when the sending returns.
        self._note_asked(frame)
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
        if silence_s_max is not None:
            self._silences[number] = silence_s_max
        return Request(self, number, receiver)

    def close_request(self, number: int, *, finished: bool) -> None:
        """Forget a request, and tell the worker unless it has ended there by itself."""
        self._events.pop(number, None)
        self._expected.pop(number, None)
        self._silences.pop(number, None)
        self._patience.over(number)
        self._set_alarm()
        if finished or self._death is not None:
            return
        try:
            self._outbox.send_nowait(encode_frame(Cancel(request=number)))
        except trio.WouldBlock:
            # A thousand frames unread: it is stuck, and its slots would stay taken.
            self._is_stuffed = True
            self._alarm.cancel()
        except trio.BrokenResourceError:
            pass

    async def _end(self, child: Child, cause: _Cause, grace_s: float) -> None:
        """Kill the process unless it ends by itself within ``grace_s``, and tell all who wait for it."""
        with trio.CancelScope(shield=True):
            with trio.move_on_after(grace_s):
                await child.wait()
            child.kill()
            with trio.move_on_after(_TOLD_S):
                await child.wait()
            text = f"{cause.text} ({say_status(child.status)})"
            if not cause.has_begun or (child.is_boxed and not self._is_heard and child.status == BOX_FAULT):
                self._give_up_box(text)
            self._bury(WorkerDiedError(text, code=cause.code))
            child.kill_outer()
            await child.wait()
            await child.close()
        self._over.set()

    def _give_up_box(self, cause: str) -> None:
        if self._limits.jail.bubblewrap and self._limits.on_box_failed is not None:
            self._limits.on_box_failed(cause)

    async def look(self) -> None:
        """Learn ``pid`` where bubblewrap started the worker; it is found once it has said something."""
        if self._child is not None and self._child.pid is None:
            await trio.to_thread.run_sync(self._child.look)

    async def _converse(self, stream: trio.SocketStream, task_status: TaskStatus[Ready]) -> _Cause:
        """Move frames both ways and return why it ended."""
        causes: list[_Cause] = []

        async def watch(look: Callable[[], Awaitable[_Cause]]) -> None:
            causes.append(await look())
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream)
            nursery.start_soon(watch, partial(self._read, stream, task_status))
            nursery.start_soon(watch, self._watch_signs)
            if self._memory_bytes_max is not None:
                nursery.start_soon(watch, self._watch_memory)
        return causes[0]

    async def _write(self, stream: trio.SocketStream) -> None:
        try:
            await self._wanted.wait()
            await stream.send_all(encode_frame(self._setup))
            async for data in self._outgoing:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader finds out why

    async def _read(self, stream: trio.SocketStream, task_status: TaskStatus[Ready]) -> _Cause:
        buffer = bytearray()
        while True:
            try:
                data = await stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return _Cause("worker_died", "the worker ended")
            if not self._is_heard:
                self._is_heard = True
                await self.look()
            buffer += data
            try:
                for frame in take_frames(buffer):
                    if isinstance(frame, Fault):
                        return _Cause(frame.code, frame.message)
                    if isinstance(frame, Ready) and self._ready is None:
                        self._ready = frame
                        self._decided.set()
                        task_status.started(frame)
                    else:
                        self._deliver(frame)
            except ValueError as exc:
                return _Cause("worker_died", f"the worker sent garbage: {exc}")
            self._set_alarm()

    async def _watch_signs(self) -> _Cause:
        """Return once the worker has been silent for too long about something that it owes."""
        while True:
            self._alarm = trio.CancelScope(deadline=self._patience.ends_at())
            with self._alarm:
                await trio.sleep_forever()
            # What it said while this process itself was held up is read first.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            if self._is_stuffed or self._patience.ends_at() <= now:
                text = f"the worker held {self.jobs} jobs, and {self._patience.describe(now)}"
                return _Cause("worker_hung", text)

    async def _watch_memory(self) -> _Cause:
        """Return once the worker holds more than it may: before the machine swaps.

        A measurement and no polling: nothing tells how much memory another process holds. Only while it works.
        """
        while True:
            await self._has_work.wait()
            held = None if self.pid is None else resident_bytes(self.pid)
            bytes_max = self._memory_bytes_max
            if held is not None and bytes_max is not None and held > bytes_max:
                return _Cause(
                    "worker_memory",
                    f"the worker held {held >> 20} MiB of memory, it may hold {bytes_max >> 20} MiB",
                )
            await trio.sleep(MEMORY_PERIOD_S)

    def _deliver(self, frame: FromWorker) -> None:
        now = trio.current_time()
        match frame:
            case Step(pieces=pieces):
                self._patience.stepped(now)
                for piece in pieces:
                    self._patience.began(piece.request)
                    self._deliver_event(piece.request, to_piece(piece))
                    if piece.finish is not None:
                        self._patience.over(piece.request)
            case Failed(request=request):
                self._patience.failed(request, now)
                self._patience.over(request)
                self._deliver_event(request, error_of(frame))
            case Prepared(request=request):
                self._patience.read(request, now)
                self._deliver_event(request, frame)
            case Loaded() | Unloaded() | DeviceMeasured() | Probed() | Measured() | Scored():
                self._patience.worked(now)
                self._patience.over(frame.request)
                self._deliver_event(frame.request, frame)
            case _:
                raise ValueError(f"unexpected {type(frame).__name__}")

    def _deliver_event(self, request: int, event: Event) -> None:
        channel = self._events.get(request)
        if channel is None:
            return  # cancelled a moment ago
        expected = self._expected.get(request)
        if not isinstance(event, ExecutionError) and (expected is None or type(event) is not expected):
            raise ValueError(f"unexpected {type(event).__name__} for request {request}")
        if not (isinstance(event, Piece) and event.finish is None):
            self._expected.pop(request, None)
        try:
            channel.send_nowait(event)
        except trio.WouldBlock:
            raise ValueError(f"request {request} was given more than it asked for") from None
        except trio.BrokenResourceError:
            pass

    def _note_asked(self, frame: ToWorker) -> None:
        """Count what a frame asks for among what the worker owes."""
        if isinstance(frame, Setup | Cancel) or frame.request not in self._events:
            return
        self._expected[frame.request] = ANSWERS[type(frame)]
        phase: Phase = "reading" if isinstance(frame, Prepare | PrepareItems) else "task"
        if isinstance(frame, Start):
            phase = "prompt"
        self._patience.asked(
            frame.request, phase, trio.current_time(), silence_s_max=self._silences.get(frame.request)
        )
        self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm.deadline = self._patience.ends_at()
        if self._patience.owes:
            self._has_work.set()
        elif self._has_work.is_set():
            self._has_work = trio.Event()

    def _bury(self, death: WorkerDiedError) -> None:
        self._death = death
        self._outgoing.close()
        self._wanted.set()
        self._decided.set()
        self._dead.set()
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
