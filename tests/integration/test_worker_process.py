"""The daemon's end of a worker's socket, with scripted processes that do what a real worker should not."""

import os
import sys

import pytest
import trio

from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.execution.frames import Cancel, Prepare, Prepared, Ready, Setup, Start
from node.execution.interface import Piece
from node.execution.jail import Jail
from node.execution.spawn import WorkerLimits
from node.execution.worker_process import Request, WorkerProcess

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# Answers Prepare at once, Start with one piece, and tells in the next Prepared how many Cancels it has seen.
SCRIPT = """
import os, socket, struct, sys
from node.execution.frames import *
from node.execution.frames import StepPiece
sock = socket.socket(fileno=int(sys.argv[1]))
file = sock.makefile("rwb")
def send(frame):
    file.write(encode_frame(frame)); file.flush()
def raw(data):
    file.write(data); file.flush()
def receive():
    prefix = file.read(4)
    if len(prefix) < 4: sys.exit(0)
    return decode_to_worker(file.read(frame_length(prefix)))
assert isinstance(receive(), Setup)
READY = Ready(architecture="script", dtypes=("fp32",), runtime="script")
cancelled = 0
"""
LOOP = """
send(READY)
while True:
    frame = receive()
    if isinstance(frame, Prepare): send(Prepared(request=frame.request, tokens=cancelled))
    if isinstance(frame, Start):
        send(Step(pieces=(StepPiece(request=frame.request, tokens=(1,), text="a", finish=None),)))
    if isinstance(frame, Cancel): cancelled += 1
"""


def process(
    script: str, *, silence_s_max: float = 30.0, memory_bytes_max: int | None = None, is_held: bool = False
) -> WorkerProcess:
    return WorkerProcess(
        Setup(device="cpu", threads=1),
        silence_s_max=silence_s_max,
        environment={"SCRIPTED": "1"},
        limits=WorkerLimits(jail=Jail(mode="off"), memory_bytes_max=memory_bytes_max, is_held=is_held),
        command=(sys.executable, "-c", SCRIPT + script),
    )


def prepare(request: int) -> Prepare:
    return Prepare(request=request, model=b"m", messages=(), prompt="a", stop=(), held=b"", tokens_out_max=4)


def start_frame(request: int) -> Start:
    return Start(request=request, temperature_milli=0, top_p_milli=1000, seed=0, tokens_out_max=4)


async def test_leaving_a_request_cancels_it_in_the_worker_unless_it_has_ended_there(
    nursery: trio.Nursery,
) -> None:
    worker = process(LOOP)
    assert isinstance(await nursery.start(worker.run), Ready)
    for _ in range(3):
        with worker.open_request(6) as request:
            await request.send(prepare(request.number))
            await request.receive()
            await request.send(start_frame(request.number))
            assert isinstance(await request.receive(), Piece)
    with worker.open_request(6) as request:
        await request.send(prepare(request.number))
        assert await request.receive() == Prepared(request=request.number, tokens=3)
    assert worker.jobs == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("sys.exit(7)", r"the worker ended \(exit status 7\)"),
        ("os.abort()", r"the worker ended \(exit status -6, SIGABRT\)"),
        ("raw(b'\\xff\\xff\\xff\\xff' + b'x' * 100); receive()", "garbage"),
        ("raw(b'\\x00\\x00\\x00\\x03abc'); receive()", "garbage"),
    ],
)
async def test_worker_that_is_never_ready_is_told_as_dead(script: str, cause: str) -> None:
    with pytest.raises(WorkerDiedError, match=cause):
        await process(script).run()


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("send(READY); receive(); os.abort()", "exit status -6"),
        ("send(READY); receive(); raw(b'\\x00\\x00\\x00\\x01x'); receive()", "garbage"),
        ("send(READY); receive(); raw(encode_frame(READY)); receive()", "garbage: unexpected Ready"),
        ("send(READY); receive(); raw(encode_frame(Loaded(request=1))[:-1]); sys.exit(0)", "ended"),
        ("send(READY); receive(); send(Loaded(request=1)); receive()", "garbage: unexpected Loaded"),
        ("send(READY); receive(); send(Prepared(request=2, tokens=1)); receive()", "garbage: unexpected Prepared"),
        (
            "send(READY); receive(); [send(Prepared(request=1, tokens=1)) for _ in range(2)]; receive()",
            "garbage: unexpected Prepared",
        ),
        ("send(READY); receive(); send(Prepared(request=1, tokens=-1)); receive()", "garbage"),
        ("send(READY); receive(); receive()", "silent"),
    ],
)
async def test_open_requests_fail_and_no_process_is_left_when_the_worker_misbehaves(
    nursery: trio.Nursery, script: str, cause: str
) -> None:
    worker = process(script, silence_s_max=1.0)
    await nursery.start(worker.run)
    assert worker.pid is not None
    with worker.open_request(2) as request, worker.open_request(2) as other:
        await request.send(prepare(request.number))
        with pytest.raises(WorkerDiedError, match=cause), trio.fail_after(20):
            await other.receive()
    with pytest.raises(WorkerDiedError):
        worker.open_request(1)
    with pytest.raises(WorkerDiedError):
        await worker.send(Cancel(request=1))
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


@pytest.mark.parametrize(
    ("pieces", "cause"),
    [
        ("[StepPiece(request=1, tokens=(1,), text='a', finish=None)] * 9", "more than it asked for"),
        ("[StepPiece(request=1, tokens=(1,), text='a', finish='stop')] * 2", "unexpected Piece"),
        ("[StepPiece(request=1, tokens=(-1,), text='a', finish=None)]", "garbage"),
        ("[StepPiece(request=1, tokens=(1,), text='', finish=None, task='embed', result=b'x')]", "garbage"),
    ],
)
async def test_worker_dies_of_an_answer_that_breaks_its_bounds(
    nursery: trio.Nursery, pieces: str, cause: str
) -> None:
    worker = process(f"send(READY); receive(); send(Step(pieces=tuple({pieces}))); receive()")
    await nursery.start(worker.run)
    with worker.open_request(6) as request:
        await request.send(start_frame(request.number))
        with pytest.raises(WorkerDiedError, match=cause), trio.fail_after(20):
            await receive_for_ever(request)


async def test_idle_worker_may_be_silent_for_as_long_as_it_likes(nursery: trio.Nursery) -> None:
    worker = process(LOOP, silence_s_max=0.2)
    await nursery.start(worker.run)
    with worker.open_request(6) as request:
        await request.send(prepare(request.number))
        await request.receive()
    # Deadlines of nobody: only the scope that watches could wake up here.
    with trio.move_on_after(0.6):
        await trio.sleep_forever()
    assert worker.death is None
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("code", "kind"), [("input", JobRefusedError), ("load", ExecutionError)])
async def test_refusal_of_one_request_keeps_the_worker(
    nursery: trio.Nursery, code: str, kind: type[ExecutionError]
) -> None:
    worker = process(
        f"send(READY); receive(); send(Failed(request=1, code={code!r}, message='no'))"
        + LOOP[LOOP.index("\nwhile") :]
    )
    await nursery.start(worker.run)
    with worker.open_request(6) as request:
        await request.send(prepare(request.number))
        with pytest.raises(ExecutionError, match="no") as refused:
            await request.receive()
        assert type(refused.value) is kind and refused.value.code == code
    assert worker.death is None
    nursery.cancel_scope.cancel()


async def test_worker_finds_no_secret_in_its_environment(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUK_TOKEN", "secret")
    script = "send(Ready(architecture=' '.join(sorted(os.environ)), dtypes=(), runtime='')); receive()"
    ready = await nursery.start(process(script).run)
    assert "SCRIPTED" in ready.architecture
    assert "SOUK_TOKEN" not in ready.architecture and "HOME" not in ready.architecture
    nursery.cancel_scope.cancel()


# Its reader answers as before; its engine takes jobs and does nothing.
HUNG = """
send(READY)
while True:
    frame = receive()
    if isinstance(frame, Prepare): send(Prepared(request=frame.request, tokens=1))
"""
GREEDY = LOOP.replace("tokens=cancelled))", "tokens=1)); held = bytearray(b'x') * (256 << 20)")


async def prepare_for_ever(worker: WorkerProcess) -> None:
    while True:
        with worker.open_request(6) as request:
            await request.send(prepare(request.number))
            await request.receive()


async def receive_for_ever(request: Request) -> None:
    while True:
        await request.receive()


async def test_worker_that_answers_prompts_is_hung_when_its_engine_is(nursery: trio.Nursery) -> None:
    worker = process(HUNG, silence_s_max=1.0)
    await nursery.start(worker.run)
    began = trio.current_time()
    with worker.open_request(6) as stuck:
        await stuck.send(prepare(stuck.number))
        await stuck.receive()
        await stuck.send(start_frame(stuck.number))
        with trio.fail_after(20), pytest.raises(WorkerDiedError, match="engine was silent") as died:
            await prepare_for_ever(worker)
    assert died.value.code == "worker_hung"
    assert 1.0 <= trio.current_time() - began <= 3.0


async def test_worker_that_is_only_asked_to_hold_prompts_may_be_silent(nursery: trio.Nursery) -> None:
    worker = process(HUNG, silence_s_max=0.2)
    await nursery.start(worker.run)
    with worker.open_request(6) as held:
        await held.send(prepare(held.number))
        await held.receive()
        with trio.move_on_after(0.6):
            await trio.sleep_forever()
    assert worker.death is None
    nursery.cancel_scope.cancel()


async def test_worker_is_ended_when_it_holds_more_memory_than_it_may(nursery: trio.Nursery) -> None:
    worker = process(GREEDY, memory_bytes_max=192 << 20)
    await nursery.start(worker.run)
    with worker.open_request(6) as request, worker.open_request(6) as busy:
        await busy.send(start_frame(busy.number))
        await request.send(prepare(request.number))
        await request.receive()
        began = trio.current_time()
        with trio.fail_after(20), pytest.raises(WorkerDiedError, match="it may hold 192 MiB") as died:
            await receive_for_ever(busy)
    assert died.value.code == "worker_memory"
    assert trio.current_time() - began <= 2.0


async def test_last_words_of_a_worker_are_what_its_jobs_fail_with(nursery: trio.Nursery) -> None:
    worker = process("send(READY); receive(); send(Fault(code='device_fault', message='CUDA error: gone'))")
    await nursery.start(worker.run)
    with worker.open_request(6) as request, worker.open_request(6) as other:
        await request.send(prepare(request.number))
        for it in (request, other):
            with trio.fail_after(20), pytest.raises(WorkerDiedError, match="CUDA error: gone") as died:
                await it.receive()
            assert died.value.code == "device_fault"


async def test_held_worker_takes_its_device_when_it_is_woken() -> None:
    worker = process(LOOP, is_held=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        with trio.move_on_after(0.5) as early:
            await worker.wait_ready()
        assert early.cancelled_caught and worker.is_held
        worker.wake(memory_bytes_max=None)
        with trio.fail_after(20):
            assert (await worker.wait_ready()).architecture == "script"
        nursery.cancel_scope.cancel()
