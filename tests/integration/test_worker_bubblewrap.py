"""A worker inside bubblewrap: what it sees there, that its end is told as ever, and that no process is left."""

import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from node.config import WorkerSection
from node.errors import WorkerDiedError
from node.execution.bubblewrap import box_command, find_bubblewrap
from node.execution.frames import Cancel, Ready, Setup
from node.execution.jail import Jail
from node.execution.pool import WorkerPool
from node.execution.spawn import WorkerLimits, spawn
from node.execution.worker_process import WorkerProcess
from node.models.store import ModelStore
from tests.execution.tiny_model import write_tiny_model
from tests.integration.test_worker_process import GREEDY, LOOP, SCRIPT, prepare, receive_for_ever, start_frame

pytestmark = [pytest.mark.integration, pytest.mark.slow]


_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def program(bubblewrap: str) -> str:
    if not bubblewrap:
        pytest.skip("bubblewrap is not installed, or refused here")
    return bubblewrap


@pytest.fixture
def adopting() -> Iterator[None]:
    """What loses its parent becomes this process's, as it does where the daemon is a container's process 1."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


# With bubblewrap alone: neither Landlock nor seccomp is entered.
LOOK_AROUND = """
import json, os, socket, sys
home, store, key = sys.argv[1:]
def writes(path):
    try:
        open(path + "/souk-box-test", "w").close()
    except OSError:
        return False
    return True
def is_there(path):
    return os.path.exists(path)
places = ["/", "/dev", "/dev/shm", "/usr", "/proc", store, os.path.dirname(home), sys.prefix]
print(json.dumps({
    "processes": sorted(int(it) for it in os.listdir("/proc") if it.isdigit()),
    "own": [os.getpid(), os.getppid()],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "host": socket.gethostname(),
    "seen": [path for path in (home, key, "/tmp", "/etc/passwd", "/bin/sh", "/home") if is_there(path)],
    "written": [path for path in places if writes(path)],
    "store": os.listdir(store),
}))
"""


def test_worker_in_bubblewrap_sees_no_other_process_no_network_and_no_home(tmp_path: Path, program: str) -> None:
    home = tmp_path / "home"
    store = home / "models"
    store.mkdir(parents=True)
    (home / "key").write_text("secret")
    (store / "model").write_text("weights")
    box = box_command(Jail(mode="auto", readable=(str(store),), bubblewrap=program), cuda=False)
    words = (sys.executable, "-P", "-c", LOOK_AROUND, str(home), str(store), str(home / "key"))
    ran = subprocess.run([*box, *words], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {
        "processes": [1, 2],
        "own": [2, 1],
        "interfaces": ["lo"],
        "host": "worker",
        # The home is a folder on the way to the models, with nothing else in it. (The key is not there.)
        "seen": [str(home), *(["/tmp"] if home.is_relative_to("/tmp") else [])],
        "written": [],
        "store": ["model"],
    }


@pytest.mark.parametrize("way", ["relative", "through two links"])
def test_bubblewrap_is_not_used_when_the_store_is_not_found_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, way: str
) -> None:
    shown = tmp_path / "shown"
    for folder in ("shown", "real/models", "between", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "between" / "hop").symlink_to(tmp_path / "real")
    (shown / "link").symlink_to(tmp_path / "between" / "hop")
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = "../real/models" if way == "relative" else str(shown / "link" / "models")
    assert os.path.isdir(store)
    assert find_bubblewrap((str(shown), store), cuda=False) == ""
    assert find_bubblewrap((str(shown), str(tmp_path / "real" / "models")), cuda=False) == program


def boxed(
    script: str, program: str, *, memory_bytes_max: int | None = None, failures: list[str] | None = None
) -> WorkerProcess:
    # The jail itself is off: the scripts never enter it.
    return WorkerProcess(
        Setup(device="cpu", threads=1),
        silence_s_max=30.0,
        environment={"CUDA_VISIBLE_DEVICES": ""},
        limits=WorkerLimits(
            jail=Jail(mode="off", bubblewrap=program),
            memory_bytes_max=memory_bytes_max,
            on_box_failed=None if failures is None else failures.append,
        ),
        command=(sys.executable, "-P", "-c", SCRIPT + script),
    )


def around(worker: WorkerProcess) -> list[psutil.Process]:
    """bubblewrap, the first process of its namespace, and the worker."""
    assert worker.pid is not None
    inside = psutil.Process(worker.pid)
    return [*inside.parents()[1::-1], inside]


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("sys.exit(7)", r"exit status 7\)"),
        ("sys.exit(200)", r"exit status 200\)"),
        ("os.abort()", "exit status -6, SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "exit status -11, SIGSEGV"),
    ],
)
async def test_end_of_a_worker_in_bubblewrap_is_told_as_its_own_and_leaves_no_zombie(
    script: str, cause: str, program: str, adopting: None
) -> None:
    before, failures = psutil.Process().children(recursive=True), list[str]()
    with pytest.raises(WorkerDiedError, match=cause), trio.fail_after(20):
        await boxed(script, program, failures=failures).run()
    assert psutil.Process().children(recursive=True) == before
    assert failures == []


@pytest.mark.parametrize("struck", [0, 1, 2], ids=["bubblewrap", "the first", "the worker"])
async def test_no_process_is_left_when_one_of_the_three_is_killed(
    nursery: trio.Nursery, program: str, struck: int, adopting: None
) -> None:
    worker = boxed(LOOP, program)
    assert isinstance(await nursery.start(worker.run), Ready)
    three = around(worker)
    assert [it.name() == "bwrap" for it in three] == [True, True, False]
    os.kill(three[struck].pid, signal.SIGKILL)
    with trio.fail_after(5):
        await worker.wait_over()
    assert not any(psutil.pid_exists(it.pid) for it in three)
    with pytest.raises(WorkerDiedError, match="exit status -9, SIGKILL"):
        await worker.send(Cancel(request=1))


async def test_no_process_is_left_when_a_worker_in_bubblewrap_is_given_up(program: str) -> None:
    worker = boxed("send(READY); import signal; os.kill(os.getpid(), signal.SIGSTOP)", program)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        three = around(worker)
        nursery.cancel_scope.cancel()
    # Waited for as well: a zombie would be process 1's to reap, which in a container may be the daemon.
    assert not any(psutil.pid_exists(it.pid) for it in three)


async def test_memory_of_a_worker_in_bubblewrap_is_watched(nursery: trio.Nursery, program: str) -> None:
    worker = boxed(GREEDY, program, memory_bytes_max=192 << 20)
    await nursery.start(worker.run)
    with worker.open_request(6) as request, worker.open_request(6) as busy:
        await busy.send(start_frame(busy.number))
        await request.send(prepare(request.number))
        with trio.fail_after(20), pytest.raises(WorkerDiedError, match="it may hold 192 MiB") as died:
            await receive_for_ever(busy)
    assert died.value.code == "worker_memory"


def write_program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        # It tells of a process, which then cannot make its mounts.
        'exec bwrap --ro-bind /nowhere /nowhere "$@"',
        "exec sleep 60",
    ],
    ids=["tells nothing", "fails later", "is stuck"],
)
async def test_bubblewrap_that_starts_no_worker_is_told_of_and_ended(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, adopting: None
) -> None:
    monkeypatch.setattr("node.execution.spawn._SETTLE_S_MAX", 0.1 if "sleep" in script else 10.0)
    monkeypatch.setattr("node.execution.spawn._FAREWELL_S", 0.01)
    before, failures = psutil.Process().children(recursive=True), list[str]()
    worker = boxed(LOOP, write_program(tmp_path / "bwrap", script), failures=failures)
    with pytest.raises(WorkerDiedError) as died, trio.fail_after(5):
        await worker.run()
    assert failures == [str(died.value)]
    assert psutil.Process().children(recursive=True) == before


async def test_bubblewrap_that_is_gone_or_hidden_is_told_of_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_jail: Jail, *, cuda: bool) -> list[str]:
        raise PermissionError("the store is closed")

    failures: list[str] = []
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerDiedError, match="cannot be started"):
        await boxed(LOOP, "/nowhere/bwrap", failures=failures).run()
    monkeypatch.setattr("node.execution.worker_process.box_command", refuse)
    with pytest.raises(WorkerDiedError, match="the store is closed"):
        await boxed(LOOP, "bwrap", failures=failures).run()
    assert len(os.listdir("/proc/self/fd")) == opened
    assert len(failures) == 2


async def test_start_that_bubblewrap_holds_up_is_given_up_at_once_when_cancelled(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    began = trio.current_time()
    with trio.move_on_after(0.1):
        await boxed(LOOP, write_program(tmp_path / "bwrap", "exec sleep 60")).run()
    assert trio.current_time() - began < 5
    assert psutil.Process().children(recursive=True) == before


async def test_no_process_is_left_when_bubblewrap_itself_is_stopped(program: str, adopting: None) -> None:
    worker = boxed(LOOP, program)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        three = around(worker)
        three[0].suspend()
        # Without an end it would hang here for ever.
        rescue = threading.Timer(5, three[0].kill)
        rescue.start()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    rescue.cancel()
    assert trio.current_time() - began < 4
    assert not any(psutil.pid_exists(it.pid) for it in three)


async def test_bubblewrap_starts_its_child_though_nobody_hears_of_it(tmp_path: Path, program: str) -> None:
    # As where the daemon dies in the middle of a start: SIGPIPE would leave the child waiting for ever.
    ours, theirs = socket.socketpair()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    held = write_program(tmp_path / "bwrap", f'read _ <"{gate}"; exec {program} "$@"')
    box = box_command(Jail(mode="off", bubblewrap=held), cuda=False)
    with ours, theirs:
        child = spawn(("/usr/bin/true",), theirs, jail=Jail(mode="off"), environment={}, box=box)
        await child.close()
        with trio.fail_after(5):
            await trio.Path(gate).write_text("go\n")
            await child.wait()
    assert child.status == 0


async def test_workers_are_started_plainly_when_bubblewrap_is_gone_after_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    write_program(folder / "bwrap", f'rm "$0"; exec {program} "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    store = ModelStore(tmp_path / "store")
    store.add_folder(write_tiny_model(tmp_path / "tiny"), "tiny")
    config = WorkerSection(
        devices="cpu", dtype="fp32", threads=1, slots=1, context_tokens_max=128, warm_spare=False
    )
    pool = WorkerPool(config, store, ("tiny",))
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        with trio.fail_after(30):
            while not pool.models():
                await pool.wait_change()
        (worker,) = pool.workers()
        assert worker.jail is not None and not worker.jail.startswith(("bubblewrap", "none"))
        nursery.cancel_scope.cancel()
    assert [it.message for it in caplog.records if "bubblewrap" in it.message] == ["bubblewrap given up"]
