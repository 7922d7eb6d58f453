"""Reads what the owner's policy looks at: the machine's load by others, its users, its GPUs, its battery. Blocks.

What belongs to this daemon and its workers is not "others". The GPUs are ``node.execution.gpu_readings``'s.
"""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Final

import psutil

from node.execution.gpu_readings import GpuReading
from node.owner.policy import PERCENT, Reading

_MIB: Final = 1 << 20
_US_PER_S: Final = 1_000_000
_LOGINCTL: Final = ("loginctl", "show-session", "--property=IdleHint", "--property=IdleSinceHint")
_LOGINCTL_S: Final = 5.0


class Sensors:
    """Remembers the CPU times of the last reading: use is what came since."""

    def __init__(self, read_gpus: Callable[[], Iterable[GpuReading]], is_at_work: Callable[[], bool]) -> None:
        """``is_at_work`` tells whether jobs of ours run: then a GPU that others use, too, tells nothing."""
        self._read_gpus = read_gpus
        self._is_at_work = is_at_work
        self._own = psutil.Process()
        self._seen: tuple[float, float] | None = None

    def read(self) -> Reading:
        """Return what the machine tells now; the first reading knows nothing of the CPU yet."""
        gpus = tuple(self._read_gpus())
        foreign = _foreign_gpu(gpus, self._own, was_at_work=self._is_at_work())
        hot = [gpu.temperature_celsius for gpu in gpus if gpu.temperature_celsius is not None]
        watts = [gpu.power_watts for gpu in gpus if gpu.power_watts is not None]
        free = [
            (gpu.memory_total_bytes - gpu.memory_used_bytes) // _MIB
            for gpu in gpus
            if gpu.memory_total_bytes is not None and gpu.memory_used_bytes is not None
        ]
        return Reading(
            idle_s=_idle_s(),
            foreign_cpu_percent=self._foreign_cpu(),
            foreign_gpu_percent=foreign,
            temperature_celsius=max(hot, default=None),
            power_watts=sum(watts) if watts else None,
            gpu_memory_free_mib=min(free, default=None),
            on_battery=_on_battery(),
        )

    def _foreign_cpu(self) -> float | None:
        """Return what share of all cores went to others since the last reading."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time stands in user's as well.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy, own = total - idle, _cpu_s_of_tree(self._own)
        before, self._seen = self._seen, (total, busy - own)
        if before is None or total <= before[0]:
            return None
        # What nobody waited for falls out of the sum: never below nothing, never above all.
        share = (busy - own - before[1]) / (total - before[0]) * PERCENT
        return min(max(share, 0.0), float(PERCENT))


def _foreign_gpu(gpus: Iterable[GpuReading], own: psutil.Process, *, was_at_work: bool) -> float | None:
    """Return the highest use by others; a card that only we use has none, one that both use tells no shares."""
    ours = {own.pid, *(child.pid for child in own.children(recursive=True))}
    used = []
    for gpu in gpus:
        if gpu.others(ours) == ():
            used.append(0.0)
        elif gpu.utilization_ratio is not None and not was_at_work:
            used.append(gpu.utilization_ratio)
    return max(used) * PERCENT if used else None


def _cpu_s_of_tree(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        # With those that have ended and were waited for: else the time of a worker that dies would be others'.
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _on_battery() -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except OSError:
        return None  # a kernel or a container that shows no power supplies at all
    if battery is None:
        return False
    return None if battery.power_plugged is None else not battery.power_plugged


def _idle_s() -> float:
    """Return since when nobody touched this machine; ``inf`` when nobody is there."""
    now, asked = time.time(), ask_logind()
    found = None if asked is None else parse_logind(asked, now)
    return terminals_idle_s(now) if found is None else found


def ask_logind() -> str | None:
    """Return what systemd's logind says of all sessions, desktops included; None where it does not run."""
    if shutil.which(_LOGINCTL[0]) is None:
        return None
    try:
        done = subprocess.run(_LOGINCTL, capture_output=True, text=True, timeout=_LOGINCTL_S, check=False)  # noqa: S603 - our words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def parse_logind(text: str, now: float) -> float | None:
    """Return the seconds of idleness that logind's properties tell; ``now`` is Unix time."""
    told = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    since = told.get("IdleSinceHint", "")
    if told.get("IdleHint") == "no":
        return 0.0
    if told.get("IdleHint") != "yes" or not since.isdecimal():
        return None
    return max(now - int(since) / _US_PER_S, 0.0) if int(since) else math.inf


def terminals_idle_s(now: float) -> float:
    """Return since when no terminal of a user who is logged in was typed into, as ``w`` tells it."""
    touched = []
    for user in psutil.users():
        try:
            touched.append(os.stat(f"/dev/{user.terminal}").st_atime)
        except OSError:
            continue  # a display such as ":0" is no device
    return max(now - max(touched), 0.0) if touched else math.inf
