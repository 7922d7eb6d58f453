"""What each device holds now, read again while the node runs: memory that others take, cards that come and go.

Neither the kernel nor the driver tells when another program takes memory, so this is asked for every few seconds.
What follows for the models is ``loading.py``'s and ``device_worker.py``'s. GPU paths: not run on a GPU yet.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil

from node.execution.devices import CpuFacts, DeviceChoice, read_cpu
from node.execution.gpu_readings import GpuReading
from node.execution.interface import DeviceLoad

LOST_AFTER_LOOKS: Final = 2
"""A driver that is busy with a reset may leave a card out once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNow:
    """One device as of this moment."""

    memory_free_bytes: int | None
    own_bytes: int | None
    """What the given processes hold of it; ``None`` where that is unknown."""
    load: DeviceLoad


def own_memory_bytes(pids: Iterable[int]) -> int:
    """Return what these processes and their children hold for themselves. Blocks.

    Without pages of files, which are free memory to the kernel.
    """
    total = 0
    for pid in pids:
        try:
            worker = psutil.Process(pid)
            family = (worker, *worker.children(recursive=True))
        except psutil.Error:
            continue
        for process in family:
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total


class Inventory:
    """Looks at the devices. Tests bring their own machine."""

    def __init__(
        self,
        read_gpus: Callable[[], Sequence[GpuReading]],
        read_memory: Callable[[], CpuFacts] = read_cpu,
        resident: Callable[[Iterable[int]], int] = own_memory_bytes,
    ) -> None:
        self._read_gpus = read_gpus
        self._read_memory = read_memory
        self._resident = resident
        self._missed: dict[str, int] = {}
        self.gpus: tuple[GpuReading, ...] = ()
        """As of the last look."""

    def look(self, pids: Mapping[DeviceChoice, frozenset[int]]) -> dict[DeviceChoice, DeviceNow]:
        """Return what is known of each device, given the processes that we run there. Blocks."""
        self.gpus = tuple(self._read_gpus())
        by_uuid = {gpu.uuid: gpu for gpu in self.gpus if gpu.uuid is not None}
        found = {}
        for choice, ours in pids.items():
            if choice.kind == "cpu":
                free = self._read_memory().memory_free_bytes
                own = self._resident(ours)
                found[choice] = DeviceNow(memory_free_bytes=free, own_bytes=own, load=DeviceLoad())
            elif choice.uuid in by_uuid:
                self._missed.pop(choice.uuid, None)
                found[choice] = _of_gpu(by_uuid[choice.uuid], ours)
            elif choice.uuid is not None:
                self._missed[choice.uuid] = self._missed.get(choice.uuid, 0) + 1
        return found

    def is_lost(self, choice: DeviceChoice) -> bool:
        """Return whether the driver has stopped listing a card."""
        return choice.uuid is not None and self._missed.get(choice.uuid, 0) >= LOST_AFTER_LOOKS


def _of_gpu(gpu: GpuReading, ours: frozenset[int]) -> DeviceNow:
    free = None
    if gpu.memory_total_bytes is not None and gpu.memory_used_bytes is not None:
        free = gpu.memory_total_bytes - gpu.memory_used_bytes
    own, others = gpu.held_by(ours), gpu.others(ours)
    # Where the driver does not know our numbers, all processes would look like somebody else's.
    is_told = others is not None and (own is not None or not ours)
    return DeviceNow(
        memory_free_bytes=free,
        own_bytes=own,
        load=DeviceLoad(
            compute_capability=gpu.compute_capability,
            utilization_ratio=gpu.utilization_ratio,
            temperature_celsius=gpu.temperature_celsius,
            power_watts=gpu.power_watts,
            energy_millijoules=gpu.energy_millijoules,
            foreign_processes=len(others) if is_told and others is not None else None,
        ),
    )
