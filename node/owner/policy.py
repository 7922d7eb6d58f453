"""When peers may use this machine, by its owner's policy and what was read of the machine. Pure.

The settings are ``[owner]`` of ``node/config.py``; ``sensors.py`` reads, ``gate.py`` acts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final, Literal, TypeAlias

from node.config import OwnerSection
from node.hours import is_within, next_opening, parse_hours

Code: TypeAlias = Literal["hours", "idle", "cpu", "gpu", "temperature", "power", "gpu_memory", "battery", "calm"]
PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of the machine; None where it does not tell."""

    idle_s: float | None = None
    """Since somebody touched keyboard or mouse; ``inf`` when nobody is there."""
    foreign_cpu_percent: float | None = None
    foreign_gpu_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    gpu_memory_free_mib: int | None = None
    """Of the GPU that has least."""
    on_battery: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One reason why peers are kept out, in words for the owner."""

    code: Code
    message: str
    opens_in_s: float | None = None
    """None: nobody knows how long it lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the policy says at one moment."""

    objections: tuple[Objection, ...]
    disturbed_at: float | None
    """When something other than the clock last spoke against it, for the next verdict."""

    @property
    def is_open(self) -> bool:
        return not self.objections

    @property
    def opens_in_s(self) -> float | None:
        """After how long it opens if nothing else comes; None when open, or when nobody knows."""
        waits = [objection.opens_in_s for objection in self.objections]
        known = [wait for wait in waits if wait is not None]
        return max(known) if known and len(known) == len(waits) else None


def is_idle_policy(owner: OwnerSection) -> bool:
    """Return whether this policy never keeps anybody out, so that nothing has to be read."""
    return not owner.hours and not wanted_readings(owner)


def wanted_readings(owner: OwnerSection) -> tuple[str, ...]:
    """Return the fields of ``Reading`` that this policy looks at."""
    wanted = {
        "idle_s": owner.idle_s > 0,
        "foreign_cpu_percent": owner.foreign_cpu_percent_max < PERCENT,
        "foreign_gpu_percent": owner.foreign_gpu_percent_max < PERCENT,
        "temperature_celsius": owner.temperature_celsius_max > 0,
        "power_watts": owner.power_watts_max > 0,
        "gpu_memory_free_mib": owner.gpu_memory_free_mib > 0,
        "on_battery": not owner.on_battery,
    }
    assert wanted.keys() == {item.name for item in fields(Reading)}
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def unread(owner: OwnerSection, reading: Reading) -> tuple[str, ...]:
    """Return what the policy looks at and this machine does not tell: such a limit keeps nobody out."""
    return tuple(name for name in wanted_readings(owner) if getattr(reading, name) is None)


def judge(
    owner: OwnerSection, reading: Reading, *, local: datetime, now: float, disturbed_at: float | None
) -> Verdict:
    """Return whether peers may use the machine at ``local`` (the owner's clock), which is ``now`` (trio's)."""
    disturbances = tuple(_disturbances(owner, reading))
    disturbed_at = now if disturbances else disturbed_at
    found = [*_hours(owner, local), *disturbances]
    if not disturbances and disturbed_at is not None:
        left = owner.calm_s - (now - disturbed_at)
        if left > 0:
            message = f"calm for {now - disturbed_at:.0f} s, {owner.calm_s} s are wanted (owner.calm_s)"
            found.append(Objection(code="calm", message=message, opens_in_s=left))
        else:
            disturbed_at = None
    return Verdict(objections=tuple(found), disturbed_at=disturbed_at)


def _hours(owner: OwnerSection, local: datetime) -> Iterator[Objection]:
    windows = [window for text in owner.hours for window in parse_hours(text)]
    if not windows or is_within(windows, local):
        return
    opens_at = next_opening(windows, local)
    assert opens_at is not None
    message = f"outside of its hours, {', '.join(owner.hours)} (owner.hours)"
    yield Objection(code="hours", message=message, opens_in_s=(opens_at - local).total_seconds())


def _disturbances(owner: OwnerSection, reading: Reading) -> Iterator[Objection]:
    if reading.idle_s is not None and reading.idle_s < owner.idle_s:
        message = f"in use {reading.idle_s:.0f} s ago, {owner.idle_s} s without are wanted (owner.idle_s)"
        yield Objection(code="idle", message=message)
    cpu, gpu = reading.foreign_cpu_percent, reading.foreign_gpu_percent
    if cpu is not None and cpu > owner.foreign_cpu_percent_max:
        what = "% of the CPU used by other programs"
        yield _above("cpu", cpu, owner.foreign_cpu_percent_max, what, "owner.foreign_cpu_percent_max")
    if gpu is not None and gpu > owner.foreign_gpu_percent_max:
        what = "% of a GPU used by other programs"
        yield _above("gpu", gpu, owner.foreign_gpu_percent_max, what, "owner.foreign_gpu_percent_max")
    temperature, watts = reading.temperature_celsius, reading.power_watts
    if temperature is not None and 0 < owner.temperature_celsius_max < temperature:
        limit = owner.temperature_celsius_max
        yield _above("temperature", temperature, limit, "°C on a GPU", "owner.temperature_celsius_max")
    if watts is not None and 0 < owner.power_watts_max < watts:
        yield _above("power", watts, owner.power_watts_max, "W drawn by the GPUs", "owner.power_watts_max")
    free = reading.gpu_memory_free_mib
    if free is not None and free < owner.gpu_memory_free_mib:
        message = (
            f"{free} MiB free on a GPU, {owner.gpu_memory_free_mib} are to stay free (owner.gpu_memory_free_mib)"
        )
        yield Objection(code="gpu_memory", message=message)
    if reading.on_battery and not owner.on_battery:
        yield Objection(code="battery", message="on battery (owner.on_battery)")


def _above(code: Code, value: float, limit: int, what: str, setting: str) -> Objection:
    return Objection(code=code, message=f"{value:.0f} {what}, at most {limit} may be ({setting})")
