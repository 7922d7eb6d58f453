"""The same requests to one node and to the mesh, undisturbed and with a kill in the middle: real daemons.

All arms use one fleet, whose nodes run all the time: a provider of it, asked at its own API, is the central server
of "one node". What is ordered is ``compare_workload.py``'s, what it adds up to ``compare_figures.py``'s. Threads,
because a slow answer must not delay the next request: arrivals follow the clock, whatever the node does.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from node.testnet.compare_figures import Played
from node.testnet.compare_workload import Workload
from node.testnet.interrupts import Interrupts
from node.testnet.network import Node, Plan, TestnetError
from node.testnet.real_client import KNOWN_S_MAX, Request, Told, call, order, wait_known
from node.testnet.real_fleet import Death, Fleet

UNDISTURBED: Final = "one node"
_CENTRAL: Final = "node-1"
_WARM_UP_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Whom the clients ask, and whether a node dies meanwhile."""

    name: str
    is_mesh: bool
    kills: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every arm of every round, and how fast the clients asked."""

    rounds: tuple[Played, ...]
    alone_s: float
    """What one answer takes on a warm node that has nothing else to do; the unit of the arrivals."""


def make_arms(nodes: int) -> tuple[Arm, ...]:
    return (
        Arm(name=UNDISTURBED, is_mesh=False, kills=False),
        Arm(name=f"mesh of {nodes}", is_mesh=True, kills=False),
        Arm(name=f"mesh of {nodes}, 1 killed", is_mesh=True, kills=True),
        Arm(name="one node, killed", is_mesh=False, kills=True),
    )


def run_compare(
    plan: Plan, workloads: Sequence[Workload], interrupts: Interrupts, *, on_progress: Callable[[str], None]
) -> Comparison:
    """Start the plan's nodes, play each workload in every arm, and stop them.

    Each round begins with another arm: drift then hits all of them. A killed node stays dead until its arm has
    ended, and serves again before the next one begins.

    Raises:
        TestnetError: a node could not be started, answered nothing undisturbed, or nobody could be killed in time.
    """
    fleet, arms = Fleet(plan), make_arms(plan.providers)
    on_progress(f"starting {plan.nodes} nodes …")
    fleet.up(interrupts)
    try:
        wait_known([_buyer(fleet)], [fleet.nodes[name] for name in fleet.providers])
        for name in fleet.providers:
            _warm_up(fleet, name, workloads[0].requests[0])
        alone_s = _time_alone(fleet.nodes[_CENTRAL], workloads[0].requests)
        rounds: list[Played] = []
        for number, workload in enumerate(workloads):
            shift = number % len(arms)
            for arm in arms[shift:] + arms[:shift]:
                if rounds and rounds[-1].killed:
                    _bring_back(fleet, fleet.deaths[-1], workload.requests[0])
                on_progress(f"round {number + 1} of {len(workloads)}: {arm.name} …")
                rounds.append(_ArmRun(fleet, arm, workload, alone_s).play(number))
    finally:
        interrupts.ignore()
        fleet.down()
    return Comparison(rounds=tuple(rounds), alone_s=alone_s)


class _ArmRun:
    """One arm in one round."""

    def __init__(self, fleet: Fleet, arm: Arm, workload: Workload, alone_s: float) -> None:
        self._fleet = fleet
        self._arm = arm
        self._workload = workload
        self._alone_s = alone_s
        self._told: dict[int, Told] = {}
        self._spent: list[int] = []
        self._strike_at = 0.0
        self._killed: str | None = None
        self._lock = threading.Lock()

    def play(self, number: int) -> Played:
        """Make every request when it is due, and return when each has ended; who was killed is still dead."""
        began = time.monotonic()
        self._strike_at = began + self._workload.strike_at * self._alone_s
        threads = []
        for index, arrival in enumerate(self._workload.arrivals):
            time.sleep(max(began + arrival * self._alone_s - time.monotonic(), 0))
            threads.append(threading.Thread(target=self._ask, args=(index,), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
        if self._arm.kills and self._killed is None:
            raise TestnetError(
                f"{self._arm.name}: no text came after the moment of the kill, so nobody was killed"
            )
        told = tuple(self._told[index] for index in range(len(threads)))
        return Played(
            arm=self._arm.name,
            round=number,
            requests=self._workload.requests,
            told=told,
            seconds=seconds,
            spent_microcredits=sum(self._spent) if self._arm.is_mesh else None,
            killed=self._killed,
        )

    def _ask(self, index: int) -> None:
        node = _buyer(self._fleet) if self._arm.is_mesh else self._fleet.nodes[_CENTRAL]
        on = "remote" if self._arm.is_mesh else "local"
        told = order(node, self._workload.requests[index], self._watch, on=on)
        # At once: a node keeps the newest 256 jobs. One that was refused before there was a contract has no id.
        if self._arm.is_mesh and told.job_id:
            self._spent.append(int(call(node, f"/api/v1/jobs/{told.job_id}")["job"]["cost_microcredits"]))
        self._told[index] = told

    def _watch(self, told: Told) -> None:
        """Kill who sent this piece, once, when the moment has come: so the strike hits an answer in its middle."""
        if not self._arm.kills or time.monotonic() < self._strike_at:
            return
        with self._lock:
            if self._killed is None:
                self._killed = self._fleet.node(told.peer_id).name if self._arm.is_mesh else _CENTRAL
                self._fleet.kill(self._killed)


def _buyer(fleet: Fleet) -> Node:
    return fleet.nodes[fleet.requesters[0]]


def _time_alone(node: Node, requests: tuple[Request, ...]) -> float:
    """Return the middle time of three answers, one after the other."""
    times = []
    for request in (requests * 3)[:3]:
        began = time.monotonic()
        told = order(node, request, on="local")
        if not told.complete:
            raise TestnetError(f"{node.name} did not answer undisturbed: {told.error or told.broken}")
        times.append(time.monotonic() - began)
    return sorted(times)[1]


def _bring_back(fleet: Fleet, death: Death, request: Request) -> None:
    fleet.bury(death)
    # In a thread of its own no signal comes between the process and the note that it exists.
    fleet.start_soon(death.name).join()
    if not fleet.nodes[death.name].url:
        raise TestnetError(f"{death.name} did not come back:\n{fleet.nodes[death.name].log_tail()}")
    _warm_up(fleet, death.name, request)


def _warm_up(fleet: Fleet, name: str, request: Request) -> None:
    """Buy one answer of this provider: its first one is slow, and shows that the buyer reaches it.

    Raises:
        TestnetError: it gave none within ``KNOWN_S_MAX``.
    """
    end = time.monotonic() + KNOWN_S_MAX
    while not (told := order(_buyer(fleet), request, on=fleet.nodes[name].peer_id)).complete:
        if time.monotonic() > end:
            raise TestnetError(f"{name} sells nothing: {told.error or told.broken}")
        time.sleep(_WARM_UP_S)
