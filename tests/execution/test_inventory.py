from collections.abc import Sequence
from typing import Any

from node.execution.devices import CpuFacts, DeviceChoice
from node.execution.gpu_readings import GpuProcess, GpuReading
from node.execution.interface import DeviceLoad
from node.execution.inventory import Inventory, own_memory_bytes

CPU = DeviceChoice(kind="cpu")
CARD = DeviceChoice(kind="cuda", index=0, uuid="GPU-1")
OURS = frozenset({10, 11})


def card(**changes: Any) -> GpuReading:
    fields: dict[str, Any] = {
        "index": 3, "name": "card", "utilization_ratio": 0.5, "memory_used_bytes": 70, "memory_total_bytes": 100,
        "temperature_celsius": 60, "power_watts": 90.0, "uuid": "GPU-1", "compute_capability": "9.0",
        "energy_millijoules": 5,
        "processes": (GpuProcess(pid=10, memory_bytes=40), GpuProcess(pid=99, memory_bytes=20)),
    }  # fmt: skip
    return GpuReading(**(fields | changes))


def inventory(gpus: Sequence[GpuReading], free: int = 60) -> Inventory:
    facts = CpuFacts(name="cpu", memory_total_bytes=100, memory_free_bytes=free)
    return Inventory(lambda: gpus, lambda: facts, lambda pids: 10 * len(list(pids)))


def test_card_is_found_by_uuid_with_what_is_ours_and_what_is_not() -> None:
    other = card(index=0, uuid="GPU-0", memory_used_bytes=1)
    now = inventory((other, card())).look({CARD: OURS})[CARD]
    assert (now.memory_free_bytes, now.own_bytes) == (30, 40)
    assert now.load == DeviceLoad(
        compute_capability="9.0",
        utilization_ratio=0.5,
        temperature_celsius=60,
        power_watts=90.0,
        energy_millijoules=5,
        foreign_processes=1,
    )


def test_each_field_is_unknown_alone_when_the_card_does_not_tell() -> None:
    silent = card(memory_used_bytes=None, processes=None, energy_millijoules=None, compute_capability=None)
    now = inventory((silent,)).look({CARD: OURS})[CARD]
    assert (
        now.memory_free_bytes is now.own_bytes is now.load.foreign_processes is now.load.energy_millijoules is None
    )
    assert now.load.power_watts == 90.0
    # Windows tells who computes, and not with how much.
    unsized = card(processes=(GpuProcess(pid=10, memory_bytes=None), GpuProcess(pid=99, memory_bytes=None)))
    assert inventory((unsized,)).look({CARD: OURS})[CARD].own_bytes is None


def test_nobody_counts_as_a_stranger_when_the_driver_does_not_know_our_numbers() -> None:
    outside = card(processes=(GpuProcess(pid=4_000_010, memory_bytes=40),))
    now = inventory((outside,)).look({CARD: OURS})[CARD]
    assert now.own_bytes is now.load.foreign_processes is None


def test_cpu_tells_free_memory_and_our_own() -> None:
    now = inventory(()).look({CPU: OURS})[CPU]
    assert (now.memory_free_bytes, now.own_bytes, now.load) == (60, 20, DeviceLoad())


def test_card_is_lost_when_two_looks_miss_it() -> None:
    cards = [card()]
    watch = inventory(cards)
    assert CARD in watch.look({CARD: OURS, CPU: OURS})
    for missed in (1, 2):
        cards.clear()
        assert CARD not in watch.look({CARD: OURS, CPU: OURS}) and watch.is_lost(CARD) == (missed == 2)
    assert not watch.is_lost(CPU)
    cards.append(card())
    watch.look({CARD: OURS})
    assert not watch.is_lost(CARD)


def test_own_memory_leaves_out_processes_that_ended() -> None:
    assert own_memory_bytes([1 << 22]) == 0
