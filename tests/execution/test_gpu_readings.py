from types import SimpleNamespace
from typing import Any

from node.execution.gpu_readings import GpuProcess, GpuReading, read_gpus

PLAYER, SHY, SCREEN = (
    GpuProcess(pid=pid, memory_bytes=memory_bytes) for pid, memory_bytes in ((1, 5), (2, None), (3, 1))
)


class NvmlError(Exception):
    pass


class Nvml:
    """A driver with one card that tells everything and one that tells nothing but its name."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 2:
            raise NvmlError("lost")
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return b"old" if handle else "new"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._refuse(handle)
        return SimpleNamespace(gpu=40, memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._refuse(handle)
        return SimpleNamespace(used=7, total=9)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self._refuse(handle)
        return 55

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        self._refuse(handle)
        return 123_500

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        self._refuse(handle)
        return 9, 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self._refuse(handle)
        return 77

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        self._refuse(handle)
        return [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=2, usedGpuMemory=None)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=3, usedGpuMemory=1)]

    @staticmethod
    def _refuse(handle: int) -> None:
        if handle == 1:
            raise NvmlError("not supported")


def test_reading_has_base_units_and_gaps_where_a_card_does_not_tell() -> None:
    assert read_gpus(Nvml()) == (
        GpuReading(
            index=0,
            name="new",
            utilization_ratio=0.4,
            memory_used_bytes=7,
            memory_total_bytes=9,
            temperature_celsius=55,
            power_watts=123.5,
            uuid="GPU-0",
            compute_capability="9.0",
            energy_millijoules=77,
            processes=(PLAYER, SHY, SCREEN),
        ),
        GpuReading(
            index=1,
            name="old",
            utilization_ratio=None,
            memory_used_bytes=None,
            memory_total_bytes=None,
            temperature_celsius=None,
            power_watts=None,
            uuid="GPU-1",
        ),
    )


def test_memory_is_told_apart_by_process_and_only_when_all_of_ours_is_known() -> None:
    reading = read_gpus(Nvml())[0]
    assert reading.held_by({1, 3, 99}) == 6 and reading.others({1}) == (SHY, SCREEN)
    assert reading.held_by({1, 2}) is reading.held_by({99}) is None
    silent = read_gpus(Nvml())[1]
    assert silent.held_by({1}) is silent.others({1}) is None


def test_nothing_is_read_when_there_is_no_driver() -> None:
    assert read_gpus(None) == ()
