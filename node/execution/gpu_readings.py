"""What the driver tells of its GPUs at this moment, for metrics. Not run on a GPU yet.

What a device is (name, memory, speed) is ``devices.py``'s; this is how busy it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from node.execution.devices import load_nvml

T = TypeVar("T")

PERCENT: Final = 100
MILLIWATTS_PER_WATT: Final = 1_000


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


class GpuReader:
    """Reads the machine's GPUs; the driver's library is loaded at the first reading."""

    def __init__(self) -> None:
        self._nvml: Any | None = None  # Any: as load_nvml gives it

    def read(self) -> tuple[GpuReading, ...]:
        """Blocks."""
        if self._nvml is None:
            self._nvml = load_nvml()
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

    readings = []
    for index in range(ask(nvml.nvmlDeviceGetCount) or 0):
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        name = ask(nvml.nvmlDeviceGetName, handle)
        rates = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        readings.append(
            GpuReading(
                index=index,
                name=name.decode("utf-8", "replace") if isinstance(name, bytes) else name or "gpu",
                utilization_ratio=None if rates is None else rates.gpu / PERCENT,
                memory_used_bytes=None if memory is None else memory.used,
                memory_total_bytes=None if memory is None else memory.total,
                temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                power_watts=None if milliwatts is None else milliwatts / MILLIWATTS_PER_WATT,
            )
        )
    return tuple(readings)
