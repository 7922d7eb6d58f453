"""What the driver tells of its GPUs at this moment. Not run on a GPU yet.

What a device is (name, memory, speed) is ``devices.py``'s; this is how busy it is, and with whose processes. Cards
are told apart by UUID: the index changes when one is added or lost.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from node.execution.devices import load_nvml

T = TypeVar("T")
Ask: TypeAlias = Callable[..., Any]  # Any: the library has no types

PERCENT: Final = 100
MILLIWATTS_PER_WATT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that uses a GPU, for computing or for its screen."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU; ``None`` where the card does not tell."""

    index: int
    """The driver's, as nvidia-smi counts."""
    name: str
    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_celsius: int | None
    power_watts: float | None
    uuid: str | None = None
    compute_capability: str | None = None
    energy_millijoules: int | None = None
    """Since the driver was loaded."""
    processes: tuple[GpuProcess, ...] | None = None
    """All of them, ours included."""

    def held_by(self, pids: Iterable[int]) -> int | None:
        """Return what these processes hold of the memory, ``None`` where the driver does not tell of any of them.

        In a container the driver may call them by numbers that mean nothing inside.
        """
        ours = set(pids)
        held = [it.memory_bytes for it in self.processes or () if it.pid in ours]
        known = [count for count in held if count is not None]
        return sum(known) if known and len(known) == len(held) else None

    def others(self, pids: Iterable[int]) -> tuple[GpuProcess, ...] | None:
        """Return the processes that are none of these, ``None`` where the driver does not tell."""
        ours = set(pids)
        return None if self.processes is None else tuple(it for it in self.processes if it.pid not in ours)


class GpuReader:
    """Reads the machine's GPUs; the driver's library is loaded at the first reading."""

    def __init__(self) -> None:
        self._nvml: Any | None = None  # Any: as load_nvml gives it
        self._is_loaded = False

    def read(self) -> tuple[GpuReading, ...]:
        """Blocks."""
        if not self._is_loaded:
            self._nvml, self._is_loaded = load_nvml(), True
        return read_gpus(self._nvml)


def read_gpus(nvml: Any | None) -> tuple[GpuReading, ...]:  # Any: as above
    """Return every GPU of the machine. Blocks; a query that a card does not support costs one field, no more."""
    if nvml is None:
        return ()

    def ask(query: Callable[..., T], *args: object) -> T | None:
        try:
            return query(*args)
        except nvml.NVMLError:
            return None

    handles = [
        (index, ask(nvml.nvmlDeviceGetHandleByIndex, index)) for index in range(ask(nvml.nvmlDeviceGetCount) or 0)
    ]
    return tuple(_read(nvml, ask, index, handle) for index, handle in handles if handle is not None)


def _read(nvml: Any, ask: Ask, index: int, handle: Any) -> GpuReading:  # Any: the library has no types
    rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
    capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return GpuReading(
        index=index,
        name=_text(ask(nvml.nvmlDeviceGetName, handle)) or "gpu",
        uuid=_text(ask(nvml.nvmlDeviceGetUUID, handle)),
        compute_capability=None if capability is None else ".".join(str(part) for part in capability),
        utilization_ratio=None if rates is None else rates.gpu / PERCENT,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_watts=None if milliwatts is None else milliwatts / MILLIWATTS_PER_WATT,
        energy_millijoules=ask(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
        processes=_processes(nvml, ask, handle),
    )


def _processes(nvml: Any, ask: Ask, handle: Any) -> tuple[GpuProcess, ...] | None:  # Any: as above
    computing = ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    drawing = ask(nvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
    if computing is None:
        return None
    # One that does both stands in both lists, with the same memory.
    found = {
        it.pid: GpuProcess(pid=it.pid, memory_bytes=it.usedGpuMemory) for it in (*computing, *(drawing or ()))
    }
    return tuple(found.values())


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
