"""Which devices this machine has, and what can be told of them without torch.

A worker adds what torch sees. The two are matched by UUID, never by index: CUDA and the driver's management
library (NVML) order devices differently. CUDA paths: not run on a GPU yet.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import psutil

from node.errors import ConfigError
from node.execution.frames import Ready
from node.execution.interface import DeviceReport
from node.execution.measurements import DeviceRates

log = logging.getLogger(__name__)

T = TypeVar("T")

# Compiled kernels that oneDNN and torch keep, one for each number of rows: at their own 1024 a worker grew by
# 470 MB over 160 prompts of mixed lengths, at 64 by 62 MB and no further. At 8 the same work took a third longer.
_KERNEL_CACHES: Final = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
# Version 2 first; a container has one of them. "max" and version 1's 2^63 mean no limit.
_CGROUP_FILES: Final = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlDevice:
    """What the driver tells of one device; ``None`` where it does not."""

    uuid: str | None
    driver: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """A device that a worker is started for."""

    kind: Literal["cuda", "cpu"]
    index: int = 0
    cards: int = 1
    """With those that follow it: they share each model."""
    uuid: str | None = None
    """Where it is known, the worker sees this card and no other, whatever its index becomes."""

    @property
    def name(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def torch_name(self) -> str:
        """What its worker calls it."""
        return self.name if self.uuid is None else "cuda:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


def load_nvml() -> Any | None:  # Any: the library has no types
    """Return the driver's management library, ``None`` where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        log.debug("no NVML", extra={"cause": str(exc)})
        return None
    return pynvml


def read_nvml(nvml: Any | None) -> tuple[NvmlDevice, ...]:  # Any: as load_nvml gives it
    """Return the driver's devices. Any query may be unsupported on a card: it then costs one field, no more."""
    if nvml is None:
        return ()

    def ask(query: Callable[..., T], *args: object) -> T | None:
        try:
            return query(*args)
        except nvml.NVMLError:
            return None

    driver = _text(ask(nvml.nvmlSystemGetDriverVersion))
    devices = []
    for index in range(ask(nvml.nvmlDeviceGetCount) or 0):
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else _text(ask(nvml.nvmlDeviceGetUUID, handle))
        devices.append(NvmlDevice(uuid=uuid, driver=driver))
    return tuple(devices)


def share_devices(choices: tuple[DeviceChoice, ...], cards: int) -> tuple[DeviceChoice, ...]:
    """Return ``choices`` with every ``cards`` neighbouring CUDA devices as one; the CPU stays what it is.

    Raises:
        ConfigError: they are no neighbours, or some are left over.
    """
    if cards == 1 or any(choice.kind == "cpu" for choice in choices):
        return choices
    groups = [choices[i : i + cards] for i in range(0, len(choices), cards)]
    for group in groups:
        if [choice.index for choice in group] != list(range(group[0].index, group[0].index + cards)):
            names = ", ".join(choice.name for choice in group)
            raise ConfigError(
                [f"worker.vllm_cards: expected {cards} neighbouring devices for each model, got {names}"]
            )
    return tuple(replace(group[0], cards=cards) for group in groups)


def choose_devices(
    wanted: str | tuple[str, ...], nvml: tuple[NvmlDevice, ...], environment: Mapping[str, str]
) -> tuple[DeviceChoice, ...]:
    """Return the devices to serve: what the configuration names, or every CUDA device, or the CPU.

    Raises:
        ConfigError: a name is not a device's.
    """
    if wanted == "cpu":
        return (DeviceChoice(kind="cpu"),)
    if not isinstance(wanted, str):
        return tuple(_parse(name) for name in wanted)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        cards = tuple(DeviceChoice(kind="cuda", index=i, uuid=card.uuid) for i, card in enumerate(nvml))
    else:
        count = min(len(nvml), len([name for name in visible.split(",") if name]))
        cards = tuple(DeviceChoice(kind="cuda", index=i) for i in range(count))
    return cards or (DeviceChoice(kind="cpu"),)


def worker_environment(choice: DeviceChoice, environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """Return what a worker of this device finds in its environment beyond the usual."""
    if choice.kind == "cpu":
        # A worker of the CPU takes no memory of a card that another one fills.
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), **_KERNEL_CACHES}
    kept = {name: environment[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in environment}
    if choice.uuid is not None:
        kept = {"CUDA_VISIBLE_DEVICES": choice.uuid}
    # The driver's order: the fastest-first order of CUDA changes when a card is added.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": str(threads), **kept}


def read_cpu(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> CpuFacts:
    """Return the CPU's name and the memory that this process may use: a container's limit counts, if lower."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _cgroup_limits(cgroup):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return CpuFacts(name=_cpu_name(proc), memory_total_bytes=total, memory_free_bytes=free)


def report_device(
    choice: DeviceChoice,
    ready: Ready,
    *,
    nvml: tuple[NvmlDevice, ...],
    cpu: CpuFacts,
    measured: DeviceRates | None,
) -> DeviceReport:
    """Join what the worker, the driver and the measurement tell of one device."""
    same = [device for device in nvml if device.uuid is not None and device.uuid == ready.uuid]
    return DeviceReport(
        kind=choice.kind,
        index=choice.index,
        name=ready.name or cpu.name,
        architecture=ready.architecture,
        memory_total_bytes=choice.cards * (ready.memory_total_bytes or cpu.memory_total_bytes),
        memory_free_bytes=choice.cards
        * (cpu.memory_free_bytes if ready.memory_free_bytes is None else ready.memory_free_bytes),
        dtypes=ready.dtypes,
        driver=same[0].driver if same else None,
        matmul_gflops=measured.matmul_gflops if measured else None,
        read_mb_per_s=measured.read_mb_per_s if measured else None,
    )


def _parse(name: str) -> DeviceChoice:
    kind, _, index = name.partition(":")
    if name == "cpu":
        return DeviceChoice(kind="cpu")
    if kind != "cuda" or not index.isdecimal():
        raise ConfigError([f"worker.devices: expected a device such as 'cuda:0' or 'cpu', got {name!r}"])
    return DeviceChoice(kind="cuda", index=int(index))


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    for limit_file, used_file in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            yield int((root / limit_file).read_text()), int((root / used_file).read_text())


def _cpu_name(proc: Path) -> str:
    with contextlib.suppress(OSError):
        for line in (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "cpu"
