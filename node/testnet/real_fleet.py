"""Real daemons that are killed, frozen and started again in their old place: same home, same key, same port.

``network.py`` starts and stops a network once; here its nodes have many lives. What is done to them and when is
the caller's business: methods block, and several threads may call them for different nodes.
"""

import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import psutil

from node.testnet.interrupts import Interrupts
from node.testnet.network import Node, Plan, spawn, stop, wait_ready

ORPHAN_S_MAX: Final = 1.0
"""How long a worker may outlive its daemon."""
_STEP_S: Final = 0.002


@dataclass(slots=True, kw_only=True)
class Death:
    """One SIGKILL of a daemon, and how long its last worker outlived it."""

    name: str
    at: float
    """In ``time.monotonic`` seconds."""
    workers: list[psutil.Process]
    orphan_s: float = 0.0
    """Known after ``bury``; ``ORPHAN_S_MAX`` or more: workers were left behind and had to be killed, too."""


class Fleet:
    """Requesters, which all nodes bootstrap from, and providers. Making one touches nothing."""

    def __init__(self, plan: Plan) -> None:
        """The first ``plan.providers`` nodes sell, the others buy."""
        self.plan = plan
        self.nodes: dict[str, Node] = {}
        self.deaths: list[Death] = []
        self._bootstrap: tuple[str, ...] = ()
        self._threads: list[threading.Thread] = []
        # Between a process and the note that it exists nobody may take stock; and after the end none may start.
        self._lock = threading.Lock()
        self._ended = False

    @property
    def providers(self) -> list[str]:
        return [f"node-{number}" for number in range(1, self.plan.providers + 1)]

    @property
    def requesters(self) -> list[str]:
        return [f"node-{number}" for number in range(self.plan.providers + 1, self.plan.nodes + 1)]

    def up(self, interrupts: Interrupts) -> None:
        """Start every node and return when all are ready; whatever fails, none is left running.

        Raises:
            TestnetError: a node ended or stayed silent.
        """
        self.plan.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for names in (self.requesters, self.providers):
                for name in names:
                    with interrupts.held():
                        self._spawn(name)
                for name in names:
                    self._ready(name)
                self._bootstrap = self._bootstrap or tuple(
                    address for name in names for address in self.nodes[name].addresses
                )
        except BaseException:
            interrupts.ignore()
            self.down()
            raise

    def down(self) -> list[str]:
        """Stop every node and return the names of those that had to be killed."""
        with self._lock:
            self._ended = True
        for thread in self._threads:
            thread.join()
        for name in self.nodes:
            self.thaw(name)
        return stop(list(self.nodes.values()))

    def node(self, peer_id: str) -> Node:
        """Return the node that peers know by this id."""
        return next(node for node in self.nodes.values() if node.peer_id == peer_id)

    def workers(self, name: str) -> list[psutil.Process]:
        process = self.nodes[name].process()
        try:
            return process.children(recursive=True) if process is not None else []
        except psutil.NoSuchProcess:
            return []

    def kill(self, name: str) -> Death:
        """Kill a daemon with SIGKILL, and return at once; ``bury`` comes before its next start."""
        process = self.nodes[name].process()
        death = Death(name=name, workers=self.workers(name), at=time.monotonic())
        if process is not None:
            process.kill()
        self.deaths.append(death)
        return death

    def bury(self, death: Death) -> None:
        """Wait for the end of a daemon and see that its workers end with it; nobody kills those while they may."""
        process = self.nodes[death.name].process()
        if process is not None:
            process.wait()
        gone_at = time.monotonic()
        while (left := _alive(death.workers)) and time.monotonic() < gone_at + ORPHAN_S_MAX:
            time.sleep(_STEP_S)
        death.orphan_s = time.monotonic() - gone_at
        for worker in left:
            worker.kill()

    def start(self, name: str) -> Node:
        """Start a dead node again where it was, and return it when it is ready.

        Raises:
            TestnetError: it ended, stayed silent, or the fleet is going down.
        """
        self._spawn(name)
        return self._ready(name)

    def start_soon(self, name: str) -> threading.Thread:
        """Start a dead node again in a thread of its own."""
        thread = threading.Thread(target=self._start_unless_ended, args=(name,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def freeze(self, name: str) -> float:
        """Stop a daemon with SIGSTOP and return when; its sockets stay open, and nothing answers."""
        at = time.monotonic()
        self._signal(name, signal.SIGSTOP)
        return at

    def thaw(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)

    def signal_worker(self, name: str, number: signal.Signals) -> bool:
        """Send a signal to one worker of a daemon; return whether there was one."""
        for worker in self.workers(name):
            try:
                worker.send_signal(number)
            except psutil.NoSuchProcess:
                continue
            return True
        return False

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self.nodes[name].process()
        if process is None:
            return
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return

    def _spawn(self, name: str) -> bool:
        before = self.nodes.get(name)
        role: Literal["worker", "client"] = "worker" if name in self.providers else "client"
        listen = tuple(address.split("/p2p/")[0] for address in before.addresses) if before else ()
        with self._lock:
            if self._ended:
                return False
            node = spawn(self.plan, name, role, bootstrap=self._bootstrap, listen=listen)
            # The port is known from its first life; the rest of what it published still holds.
            self.nodes[name] = (
                replace(node, peer_id=before.peer_id, addresses=before.addresses) if before else node
            )
        return True

    def _ready(self, name: str) -> Node:
        node = self.nodes[name]
        info = wait_ready(node)
        self.nodes[name] = replace(node, url=info.url, peer_id=info.peer_id, addresses=info.addresses)
        return self.nodes[name]

    def _start_unless_ended(self, name: str) -> None:
        if self._spawn(name):
            self._ready(name)


def _alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    alive = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive
