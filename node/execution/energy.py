"""What a job costs in energy: the device's counter, shared among the jobs that ran beside each other.

Sources, best first: the counter of a GPU's driver, RAPL on a CPU (the whole package, whoever computed there),
power times the time between two looks. Where there is none the energy is unknown, and never guessed. GPU paths:
not run on a GPU yet.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from node.execution.devices import load_nvml

Counter: TypeAlias = Callable[[], int | None]
"""Returns millijoules since some moment in the past, never less than before; ``None`` where that is unknown."""
Clock: TypeAlias = Callable[[], float]

_RAPL: Final = Path("/sys/class/powercap")
_MICROJOULES_PER_MILLIJOULE: Final = 1_000


@dataclass(slots=True)
class _Share:
    """A job that runs: its part so far, and its tokens since the last look at the counter."""

    millijoules: float = 0.0
    is_known: bool = True
    tokens: int = 0


class EnergyBook:
    """The jobs of one device. Between two looks its energy goes to the jobs by the tokens that each one had.

    A pass advances every sequence of its batch by one token, or reads a part of a prompt: tokens are what a job
    had of the passes. What the device takes while no job runs is nobody's.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._jobs: dict[int, _Share] = {}
        self._numbers = itertools.count(1)
        self._last: int | None = None

    def start(self) -> int:
        """Begin with a job and return what it is called here."""
        self._look()
        job = next(self._numbers)
        self._jobs[job] = _Share()
        return job

    def add_tokens(self, job: int, tokens: int) -> None:
        """Note tokens that were read or written for a job."""
        self._jobs[job].tokens += tokens

    def end(self, job: int) -> int | None:
        """Return what the job took in millijoules, ``None`` where the device does not tell."""
        self._look()
        share = self._jobs.pop(job)
        return round(share.millijoules) if share.is_known else None

    def _look(self) -> None:
        before, now = self._last, self._counter()
        self._last = now
        if not self._jobs:
            return
        total = sum(share.tokens for share in self._jobs.values())
        for share in self._jobs.values():
            if now is None or before is None or now < before:
                share.is_known = False
            else:
                # Nobody has a token yet: they all wait for the same passes.
                part = share.tokens / total if total else 1 / len(self._jobs)
                share.millijoules += (now - before) * part
            share.tokens = 0


def nvml_counter(nvml: Any | None, uuid: str | None, clock: Clock) -> Counter:  # Any: as load_nvml gives it
    """Return the energy counter of the card with this UUID, or its power times the time where it has none."""
    if nvml is None or uuid is None:
        return lambda: None
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError:
        return lambda: None

    def power_milliwatts() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetPowerUsage(handle))
        except nvml.NVMLError:
            return None

    from_power = power_counter(power_milliwatts, clock)

    def read() -> int | None:
        try:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except nvml.NVMLError:
            return from_power()

    return read


def power_counter(power_milliwatts: Callable[[], int | None], clock: Clock) -> Counter:
    """Return a counter that adds up power times time, by the mean of the power at both ends."""
    total, last_at, last_power = 0.0, clock(), power_milliwatts()

    def read() -> int | None:
        nonlocal total, last_at, last_power
        now, power = clock(), power_milliwatts()
        if power is None or last_power is None:
            last_at, last_power = now, power
            return None
        total += (power + last_power) / 2 * (now - last_at)
        last_at, last_power = now, power
        return round(total)

    return read


def rapl_counter(root: Path = _RAPL) -> Counter:
    """Return the sum of the packages' counters; unknown where there are none, or only root may read them."""
    packages = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
    last: dict[Path, int] = {}
    total = 0

    def read() -> int | None:
        nonlocal total
        try:
            for package in packages:
                now = int((package / "energy_uj").read_text())
                before = last.get(package, now)
                # It begins again at its largest value: after minutes under load.
                wrapped = int((package / "max_energy_range_uj").read_text()) if now < before else 0
                total += now - before + wrapped
                last[package] = now
        except (OSError, ValueError):
            return None
        return total // _MICROJOULES_PER_MILLIJOULE if packages else None

    return read


def device_counter(kind: str, uuid: str | None, clock: Clock) -> Counter:
    """Return the counter of a device as its worker names it. Blocks for a moment."""
    with contextlib.suppress(ImportError):
        return rapl_counter() if kind == "cpu" else nvml_counter(load_nvml(), uuid, clock)
    return lambda: None
