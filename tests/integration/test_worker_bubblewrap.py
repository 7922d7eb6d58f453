"""A worker inside bubblewrap: what it sees there, that its end is told as ever, and that no process is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio

from node.errors import WorkerDiedError
from node.execution.bubblewrap import box_command, find_bubblewrap
from node.execution.frames import Cancel, Ready, Setup
from node.execution.jail import Jail
from node.execution.spawn import WorkerLimits
from node.execution.worker_process import WorkerProcess
from tests.integration.test_worker_process import GREEDY, LOOP, SCRIPT, prepare, receive_for_ever, start_frame

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def program() -> str:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    found = find_bubblewrap(cuda=False)
    if not found:
        pytest.skip("this machine refuses bubblewrap: the worker's log line says why")
    return found


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
    "seen": [path for path in (home, key, "/tmp", "/etc/passwd", "/bin/sh", "/root/.ssh") if is_there(path)],
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


def boxed(script: str, program: str, *, memory_bytes_max: int | None = None) -> WorkerProcess:
    # The jail itself is off: the scripts never enter it.
    return WorkerProcess(
        Setup(device="cpu", threads=1),
        silence_s_max=30.0,
        environment={"CUDA_VISIBLE_DEVICES": ""},
        limits=WorkerLimits(jail=Jail(mode="off", bubblewrap=program), memory_bytes_max=memory_bytes_max),
        command=(sys.executable, "-P", "-c", SCRIPT + script),
    )


def around(worker: WorkerProcess) -> list[psutil.Process]:
    """bubblewrap, the first process of its namespace, and the worker."""
    assert worker.pid is not None
    inside = psutil.Process(worker.pid)
    return [*inside.parents()[1::-1], inside]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [it for it in processes if it.is_running() and it.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("sys.exit(7)", r"exit status 7\)"),
        ("os.abort()", "exit status -6, SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "exit status -11, SIGSEGV"),
    ],
)
async def test_end_of_a_worker_in_bubblewrap_is_told_as_its_own(script: str, cause: str, program: str) -> None:
    with pytest.raises(WorkerDiedError, match=cause), trio.fail_after(20):
        await boxed(script, program).run()


@pytest.mark.parametrize("struck", [0, 1, 2], ids=["bubblewrap", "the first", "the worker"])
async def test_no_process_is_left_when_one_of_the_three_is_killed(
    nursery: trio.Nursery, program: str, struck: int
) -> None:
    worker = boxed(LOOP, program)
    assert isinstance(await nursery.start(worker.run), Ready)
    three = around(worker)
    assert [it.name() == "bwrap" for it in three] == [True, True, False]
    os.kill(three[struck].pid, signal.SIGKILL)
    with trio.fail_after(5):
        await worker.wait_over()
    assert alive(three) == []
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


async def test_worker_is_dead_and_not_more_when_bubblewrap_fails() -> None:
    worker = boxed(LOOP, "false")
    with pytest.raises(WorkerDiedError, match="exit status 1"), trio.fail_after(20):
        await worker.run()
    with pytest.raises(WorkerDiedError, match="cannot be started"):
        await boxed(LOOP, "/nowhere/bwrap").run()
