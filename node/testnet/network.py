"""Real nodes on loopback: start them, wait until they answer, find them again, stop them and what they started.

One folder holds everything: ``state.json`` and one home for each node. The nodes are ``souk serve`` processes that
do not end with the command that started them.
"""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from node.errors import AlreadyRunningError, NodeError
from node.home import ApiInfo, Home
from node.testnet.interrupts import Interrupts

# A cold import of torch alone took up to 10 s, and the nodes of one machine start at the same time.
READY_S: Final = 180.0
STOP_S: Final = 15.0
WORKERS_S: Final = 2.0
LOG_TAIL_CHARACTERS: Final = 2000
STATE_NAME: Final = "state.json"
_STEP_S: Final = 0.05


PROGRAM: Final = (sys.executable, "-m", "node.cli")


class TestnetError(NodeError):
    """The network could not be started, found or stopped."""

    __test__ = False  # its name makes pytest take it for a test


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start."""

    folder: Path
    nodes: int
    providers: int
    models_dir: Path
    base_config: str
    """TOML that every node begins with; names, roles and addresses are written over it."""
    models: tuple[str, ...] = ("*",)
    """What providers load."""
    program: tuple[str, ...] = PROGRAM
    """What is run with ``--home DIR serve``."""


def in_fp32(plan: Plan) -> Plan:
    """Return the plan with workers in fp32: an answer is the same to the last token wherever it runs."""
    return replace(plan, base_config=plan.base_config.replace("[worker]\n", '[worker]\ndtype = "fp32"\n'))


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One process and where it answers; ``url`` is empty until it was ready once."""

    name: str
    role: Literal["worker", "client"]
    home: str
    pid: int
    started_at: float
    """As the system says: tells the process from a later one with its number."""
    url: str = ""
    peer_id: str = ""
    addresses: tuple[str, ...] = ()

    def process(self) -> psutil.Process | None:
        """Return the process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < 1.0
            return process if same and _runs(process) else None
        except psutil.NoSuchProcess:
            return None

    def log_tail(self) -> str:
        try:
            return Home(Path(self.home)).log_path.read_text("utf-8", "replace")[-LOG_TAIL_CHARACTERS:]
        except OSError:
            return ""


class Network:
    """The nodes of one folder. Making one touches nothing."""

    def __init__(self, folder: Path, nodes: Sequence[Node] = ()) -> None:
        self.folder = folder
        self.nodes = list(nodes)

    @classmethod
    def load(cls, folder: Path) -> "Network":
        """Return what ``up`` left in ``folder``.

        Raises:
            TestnetError: nothing readable is there.
        """
        path = folder / STATE_NAME
        try:
            found = json.loads(path.read_text("utf-8"))["nodes"]
            return cls(folder, [Node(**{**node, "addresses": tuple(node["addresses"])}) for node in found])
        except FileNotFoundError as exc:
            raise TestnetError(f"no testnet in {folder}: start one with souk testnet up --dir {folder}") from exc
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise TestnetError(f"{path} is damaged ({exc}); end its processes by hand and delete it") from exc

    def save(self) -> None:
        fields = [asdict(node) for node in self.nodes]
        temporary = self.folder / f".{STATE_NAME}.{os.getpid()}"
        temporary.write_text(json.dumps({"schema": 1, "nodes": fields}, indent=2), encoding="utf-8")
        temporary.replace(self.folder / STATE_NAME)

    def find(self, name: str) -> Node:
        """Return the node of this name or number."""
        for node in self.nodes:
            if name in (node.name, node.name.removeprefix("node-")):
                return node
        raise TestnetError(f"no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")

    def up(self, plan: Plan, interrupts: Interrupts) -> None:
        """Start every node and return when all are ready; whatever fails or interrupts, none is left running.

        Raises:
            AlreadyRunningError: nodes of an earlier ``up`` run in this folder.
            TestnetError: a node ended or stayed silent; the message has the end of its log.
        """
        self._refuse_second()
        try:
            plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise TestnetError(f"the folder {plan.folder} cannot be made: {exc.strerror}") from exc
        self.nodes = []
        try:
            self._start(plan, 1, bootstrap=(), interrupts=interrupts)
            self._wait_ready(0)
            for number in range(2, plan.nodes + 1):
                self._start(plan, number, bootstrap=self.nodes[0].addresses, interrupts=interrupts)
            for index in range(1, plan.nodes):
                self._wait_ready(index)
        except BaseException:
            interrupts.ignore()
            self.down()
            raise

    def _refuse_second(self) -> None:
        if not (self.folder / STATE_NAME).exists():
            return
        running = [node.name for node in Network.load(self.folder).nodes if node.process()]
        if running:
            names = ", ".join(running)
            raise AlreadyRunningError(f"a testnet runs in {self.folder} ({names}): souk testnet down stops it")

    def _start(self, plan: Plan, number: int, *, bootstrap: tuple[str, ...], interrupts: Interrupts) -> None:
        role: Literal["worker", "client"] = "worker" if number <= plan.providers else "client"
        with interrupts.held():
            self.nodes.append(spawn(plan, f"node-{number}", role, bootstrap=bootstrap))
            self.save()

    def _wait_ready(self, index: int) -> None:
        node = self.nodes[index]
        info = wait_ready(node)
        self.nodes[index] = replace(node, url=info.url, peer_id=info.peer_id, addresses=info.addresses)
        self.save()

    def restart(self, node: Node, *, program: tuple[str, ...] = PROGRAM) -> Node:
        """Start a node once more in its home, at the addresses that peers know; return it when it is ready.

        Raises:
            TestnetError: it ended or stayed silent; the message has the end of its log.
        """
        stop([node])
        listen = ",".join(address.partition("/p2p/")[0] for address in node.addresses)
        settings = ("--set", f"p2p.listen={listen}") if listen else ()
        index = self.nodes.index(node)
        self.nodes[index] = _launch(
            Home(Path(node.home)), program, name=node.name, role=node.role, settings=settings
        )
        self.save()
        self._wait_ready(index)
        return self.nodes[index]

    def down(self) -> list[str]:
        """Stop every node; return the names of those that had to be killed."""
        killed = stop(self.nodes)
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        return killed


def spawn(
    plan: Plan,
    name: str,
    role: Literal["worker", "client"],
    *,
    bootstrap: tuple[str, ...],
    listen: tuple[str, ...] = (),
) -> Node:
    """Start one node in its folder, where an earlier life may have left its key and its ledger.

    ``listen``: instead of what the plan's configuration says, so that peers find a node again after a crash.
    """
    home = Home(plan.folder / name)
    home.create()
    config = node_config(plan, name=name, role=role, bootstrap=bootstrap, listen=listen)
    home.config_path.write_text(config, encoding="utf-8")
    return _launch(home, plan.program, name=name, role=role)


def _launch(
    home: Home,
    program: tuple[str, ...],
    *,
    name: str,
    role: Literal["worker", "client"],
    settings: tuple[str, ...] = (),
) -> Node:
    home.remove_api()  # of an earlier run: it would be taken for a sign that this one is ready
    # The settings of the shell that starts a testnet are not meant for its nodes.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SOUK_")}
    command = [*program, "--home", str(home.path), "serve", *settings]
    with open(home.log_path, "ab") as log_file:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            cwd=home.path,
            env=environ,
            start_new_session=True,
        )
    started_at = psutil.Process(process.pid).create_time()
    return Node(name=name, role=role, home=str(home.path), pid=process.pid, started_at=started_at)


def wait_ready(node: Node) -> ApiInfo:
    """Return what ``node`` publishes once it is ready.

    Raises:
        TestnetError: it ended, or was not ready in time.
    """
    home = Home(Path(node.home))
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        info = home.read_api()
        if info is not None and info.pid == node.pid:
            return info
        process = node.process()
        if process is None:
            raise TestnetError(f"{node.name} ended before it was ready. The end of its log:\n{node.log_tail()}")
        try:
            process.wait(_STEP_S)
        except psutil.TimeoutExpired:
            continue
    raise TestnetError(f"{node.name} was not ready in {READY_S:.0f} s. The end of its log:\n{node.log_tail()}")


def stop(nodes: Sequence[Node]) -> list[str]:
    """End these nodes and the workers they started, gently first; return the names of those that were killed."""
    processes = {node.name: process for node in nodes if (process := node.process())}
    # Remembered now: when its node is gone, nothing says any more whose worker a process was.
    workers = [child for process in processes.values() for child in _children(process)]
    for process in processes.values():
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(list(processes.values()), timeout=STOP_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    orphans = _wait_ended(workers, time.monotonic() + WORKERS_S)
    for process in orphans:
        _signal(process, signal.SIGKILL)
    _wait_ended([*alive, *orphans], time.monotonic() + STOP_S)
    return [name for name, process in processes.items() if process in alive]


def _wait_ended(processes: Sequence[psutil.Process], end: float) -> list[psutil.Process]:
    """Return those that still run at ``end``; a zombie has ended, whoever may reap it, and when."""
    while (running := [process for process in processes if _runs(process)]) and time.monotonic() < end:
        time.sleep(_STEP_S)
    return running


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def node_config(
    plan: Plan, *, name: str, role: str, bootstrap: tuple[str, ...], listen: tuple[str, ...] = ()
) -> str:
    """Return the configuration of one node: the plan's, with what is the node's own written over it."""
    config: dict[str, Any] = tomllib.loads(plan.base_config)  # TOML; the node's loader judges it
    own: dict[str, dict[str, object]] = {
        "node": {"name": name, "role": role},
        "p2p": {"bootstrap": list(bootstrap), **({"listen": list(listen)} if listen else {})},
        "models": {"dir": str(plan.models_dir), "serve": list(plan.models)} if role == "worker" else {},
    }
    for section, values in own.items():
        config[section] = {**config.get(section, {}), **values}
    return _to_toml(config)


def _to_toml(config: Mapping[str, Any]) -> str:  # as tomllib gave it: scalars, and sections of scalars and lists
    scalars = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in config.items() if isinstance(value, dict)}
    # JSON's strings, numbers, booleans and flat lists are TOML's too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in scalars.items()]
    for name, values in sections.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
