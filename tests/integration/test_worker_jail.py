"""A worker process in its jail: what it cannot do any more, and that it still runs a model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from node.config import WorkerSection
from node.execution.bubblewrap import box_command
from node.execution.jail import Jail, landlock_version
from node.execution.pool import WorkerPool
from node.models.store import ModelStore
from protocol.task import GenerateInput
from tests.execution.tiny_model import write_tiny_model
from tests.integration.test_worker_pool import answer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock: the tier is seccomp alone"),
]

# Confined as a worker is, by the same code; each attempt tells how it ended.
PRISONER = """
import ctypes, json, os, resource, socket, subprocess, sys, threading
import msgspec
from node.execution.engine.worker_main import _confine
from node.execution.jail import Jail
jail, home, listener, store = msgspec.json.decode(sys.argv[1], type=Jail), sys.argv[2], sys.argv[3], sys.argv[4]
tier = _confine(jail)
libc = ctypes.CDLL(None, use_errno=True)
def inet(kind): socket.socket(socket.AF_INET, kind)
def call(result):
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
def thread():
    it = threading.Thread(target=print, args=("",), kwargs={"file": sys.stderr}); it.start(); it.join()
attempts = {
    "read the home": lambda: open(home + "/key").read(),
    "list the home": lambda: os.listdir(home),
    "write to the home": lambda: open(home + "/new", "w"),
    "write to /tmp": lambda: open("/tmp/souk-jail-test", "w"),
    "write to the store": lambda: open(store + "/new", "w"),
    "read /etc/passwd": lambda: open("/etc/passwd").read(),
    "TCP": lambda: inet(socket.SOCK_STREAM),
    "UDP": lambda: inet(socket.SOCK_DGRAM),
    "Unix socket": lambda: socket.socket(socket.AF_UNIX).connect(listener),
    "a pair of sockets": socket.socketpair,
    "shared memory": lambda: call(libc.shmget(4711, 4096, 0o1600)),
    "mode of the key": lambda: os.chmod(home + "/key", 0o666),
    "owner of the key": lambda: os.chown(home + "/key", os.getuid(), os.getgid()),
    "times of the key": lambda: os.utime(home + "/key", (1, 1)),
    "attributes of the key": lambda: os.setxattr(home + "/key", "user.souk", b"1"),
    "length of the key": lambda: os.truncate(home + "/key", 0),
    "limits of the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
    "priority of the parent": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "environment of the parent": lambda: open(f"/proc/{os.getppid()}/environ").read(),
    "root directory": lambda: os.chroot(store),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "subprocess": lambda: subprocess.run(["/bin/true"]),
    "fork": os.fork,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "memory of the parent": lambda: open(f"/proc/{os.getppid()}/mem", "rb").read(1),
    "thread": thread,
    "read the store": lambda: open(store + "/model").read(),
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "its own limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
}
told = {}
for name, attempt in attempts.items():
    try:
        attempt()
        told[name] = "done"
    except OSError as exc:
        told[name] = type(exc).__name__
print(json.dumps({"tier": tier, **told}))
"""
ALLOWED = {"thread", "read the store", "signal itself", "its own limits"}


@pytest.mark.parametrize("boxed", [False, True], ids=["alone", "in bubblewrap"])
def test_prisoner_can_read_its_models_and_nothing_else(tmp_path: Path, boxed: bool, bubblewrap: str) -> None:
    program = bubblewrap if boxed else ""
    if boxed and not program:
        pytest.skip("bubblewrap is not installed, or refused here")
    home, store = tmp_path / "home", tmp_path / "store"
    for folder in (home, store):
        folder.mkdir()
    (home / "key").write_text("secret")
    (store / "model").write_text("weights")
    jail = Jail(mode="required", readable=(str(store),), bubblewrap=program)
    box = box_command(jail, cuda=False) if boxed else []
    words = (msgspec.json.encode(jail).decode(), str(home), str(tmp_path / "socket"), str(store))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        ran = subprocess.run(
            [*box, sys.executable, "-P", "-c", PRISONER, *words],
            capture_output=True,
            text=True,
            check=True,
        )
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told.pop("tier") == ("bubblewrap+landlock+seccomp" if boxed else "landlock+seccomp")
    assert {name for name, end in told.items() if end == "done"} == ALLOWED
    if not boxed:  # there, files are missing and mounts read-only as well
        assert {end for name, end in told.items() if name not in ALLOWED} == {"PermissionError"}
    assert not (store / "new").exists()


async def test_model_answers_the_same_in_the_jail_as_outside(tmp_path: Path, bubblewrap: str) -> None:
    store = ModelStore(tmp_path / "store")
    model = store.add_folder(write_tiny_model(tmp_path / "tiny"), "tiny")
    texts = []
    tier = "bubblewrap+landlock+seccomp" if bubblewrap else "landlock+seccomp"
    for mode in ("required", "off"):
        config = WorkerSection(devices="cpu", dtype="fp32", threads=2, slots=1, context_tokens_max=128, jail=mode)
        pool = WorkerPool(config, store, ("tiny",))
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            (worker,) = pool.workers()
            assert worker.jail == (tier if mode == "required" else "none: switched off")
            seccomp = _status_of(pool._workers[0].process.pid)["Seccomp"]
            assert seccomp == ("2" if mode == "required" else _status_of(os.getpid())["Seccomp"])
            pieces = await answer(pool, mode, model.model_id, GenerateInput(prompt="ab"), seed=5)
            texts.append("".join(piece.text for piece in pieces))
            nursery.cancel_scope.cancel()
    assert texts[0] == texts[1] != ""


def _status_of(pid: int | None) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
