"""The facts about a machine that a figure taken on it is worth nothing without."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where and when; ``load_1min`` is worth most when taken before the measurement adds its own."""

    cpu: str
    cores: int
    load_1min: float
    python: str
    torch: str
    system: str
    date: str
    commit: str


def describe_machine() -> Machine:
    """Return the facts of now."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        load_1min=os.getloadavg()[0],
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        system=f"{platform.system()} {platform.machine()}",
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=_commit(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit of a checkout; an installed souk has its version instead."""
    if not (_ROOT / ".git").exists():
        return f"souk {importlib.metadata.version('souk')}"
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own arguments
    return done.stdout.strip() or "unknown"
