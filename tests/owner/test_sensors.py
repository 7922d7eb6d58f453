import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from node.execution.gpu_readings import GpuProcess, GpuReading
from node.owner import sensors
from node.owner.sensors import Sensors, parse_logind

MIB = 1 << 20


def gpu(index: int, **changes: Any) -> GpuReading:
    facts: dict[str, Any] = {
        "utilization_ratio": 0.5,
        "memory_used_bytes": 600 * MIB,
        "memory_total_bytes": 1000 * MIB,
        "temperature_celsius": 60,
        "power_watts": 100.0,
    }
    return GpuReading(index=index, name="card", **(facts | changes))


def test_sensors_tell_the_worst_of_all_gpus() -> None:
    cards = (gpu(0), gpu(1, temperature_celsius=80, memory_used_bytes=900 * MIB, utilization_ratio=0.75))
    reading = Sensors(lambda: cards, lambda: False).read()
    assert (reading.temperature_celsius, reading.power_watts) == (80, 200.0)
    assert (reading.gpu_memory_free_mib, reading.foreign_gpu_percent) == (100, 75.0)


def test_sensors_tell_nothing_of_gpus_when_there_are_none_or_they_are_silent() -> None:
    for cards in (
        (),
        (gpu(0, **dict.fromkeys(("utilization_ratio", "memory_used_bytes", "temperature_celsius"))),),
    ):
        reading = Sensors(lambda cards=cards: cards, lambda: False).read()  # type: ignore[misc]
        assert reading.temperature_celsius is reading.foreign_gpu_percent is reading.gpu_memory_free_mib is None


def test_use_of_a_gpu_counts_as_foreign_only_while_no_job_of_ours_runs() -> None:
    assert Sensors(lambda: (gpu(0),), lambda: True).read().foreign_gpu_percent is None


def test_card_without_processes_of_others_has_no_foreign_use_even_while_we_work() -> None:
    ours = gpu(0, processes=(GpuProcess(pid=os.getpid(), memory_bytes=5),))
    shared = gpu(1, processes=(*(ours.processes or ()), GpuProcess(pid=1, memory_bytes=None)))
    for at_work, cards, expected in ((True, (ours,), 0.0), (True, (shared,), None), (False, (ours, shared), 50.0)):
        assert Sensors(lambda cards=cards: cards, lambda at=at_work: at).read().foreign_gpu_percent == expected  # type: ignore[misc]


@pytest.mark.parametrize(("plugged", "expected"), [(True, False), (False, True), (None, None)])
def test_battery_is_used_when_it_is_known_to_be(
    monkeypatch: pytest.MonkeyPatch, plugged: bool | None, expected: bool | None
) -> None:
    battery = SimpleNamespace(power_plugged=plugged)
    monkeypatch.setattr(sensors.psutil, "sensors_battery", lambda: battery)
    assert Sensors(tuple, lambda: False).read().on_battery is expected


def test_machine_that_shows_no_power_supplies_tells_nothing_of_its_battery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent() -> None:
        raise FileNotFoundError("/sys/class/power_supply")

    monkeypatch.setattr(sensors.psutil, "sensors_battery", absent)
    assert Sensors(tuple, lambda: False).read().on_battery is None


def test_own_work_does_not_count_as_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Sensors(tuple, lambda: False)
    assert watch.read().foreign_cpu_percent is None
    cpu = sensors.psutil.cpu_times()
    monkeypatch.setattr(sensors.psutil, "cpu_times", lambda: cpu)
    own = iter([10.0, 15.0, 15.0])
    monkeypatch.setattr(sensors, "_cpu_s_of_tree", lambda _process: next(own))
    watch.read()
    # Ten seconds of all cores: five were busy, by us; then ten more, eight busy, by others.
    later = cpu._replace(user=cpu.user + 5, idle=cpu.idle + 5)
    monkeypatch.setattr(sensors.psutil, "cpu_times", lambda: later)
    assert watch.read().foreign_cpu_percent == pytest.approx(0.0, abs=0.01)
    latest = later._replace(user=later.user + 8, idle=later.idle + 2)
    monkeypatch.setattr(sensors.psutil, "cpu_times", lambda: latest)
    assert watch.read().foreign_cpu_percent == pytest.approx(80.0, abs=0.01)


def test_own_work_stays_own_when_the_process_that_did_it_has_ended() -> None:
    spent = "import time\nwhile time.process_time() < 0.15: pass"
    before = sensors._cpu_s_of_tree(psutil.Process())
    subprocess.run([sys.executable, "-c", spent], check=True)
    # The kernel tells whole ticks of 10 ms, of user and system time each.
    assert sensors._cpu_s_of_tree(psutil.Process()) - before >= 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IdleHint=no\nIdleSinceHint=5\n", 0.0),
        ("IdleHint=yes\nIdleSinceHint=1700000000000000\n", 60.0),
        ("IdleHint=yes\nIdleSinceHint=0\n", math.inf),
        ("", None),
        ("IdleHint=yes\n", None),
    ],
)
def test_words_of_logind_are_read(text: str, expected: float | None) -> None:
    assert parse_logind(text, 1_700_000_060.0) == expected


def test_terminals_are_asked_when_logind_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "ask_logind", lambda: None)
    monkeypatch.setattr(sensors.psutil, "users", list)
    assert Sensors(tuple, lambda: False).read().idle_s == math.inf

    class User:
        terminal = "null"

    monkeypatch.setattr(sensors.psutil, "users", lambda: [User])
    idle_s = Sensors(tuple, lambda: False).read().idle_s
    assert idle_s is not None and 0 <= idle_s < time.time()
