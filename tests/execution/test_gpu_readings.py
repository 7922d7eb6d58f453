from types import SimpleNamespace
from typing import Any

from node.execution.gpu_readings import GpuReading, read_gpus


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
        ),
        GpuReading(
            index=1,
            name="old",
            utilization_ratio=None,
            memory_used_bytes=None,
            memory_total_bytes=None,
            temperature_celsius=None,
            power_watts=None,
        ),
    )


def test_nothing_is_read_when_there_is_no_driver() -> None:
    assert read_gpus(None) == ()
