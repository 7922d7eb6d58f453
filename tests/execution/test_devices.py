from pathlib import Path

import pytest

from node.errors import ConfigError
from node.execution.devices import (
    CpuFacts,
    DeviceChoice,
    NvmlDevice,
    choose_devices,
    load_nvml,
    read_cpu,
    read_nvml,
    report_device,
    share_devices,
    worker_environment,
)
from node.execution.frames import Ready
from node.execution.measurements import DeviceRates
from tests.execution.fakes import FakeNvml

CPU = DeviceChoice(kind="cpu")
CARDS = (NvmlDevice(uuid="GPU-0", driver="610.20"), NvmlDevice(uuid="GPU-1", driver="610.20"))
FACTS = CpuFacts(name="a cpu", memory_total_bytes=100, memory_free_bytes=60)
MEASURED = DeviceRates(matmul_gflops=5, read_mb_per_s=6)


def cuda_ready(**changes: object) -> Ready:
    fields: dict[str, object] = {
        "architecture": "sm_90",
        "dtypes": ("bf16", "fp16", "fp32"),
        "runtime": "torch 2",
        "name": "H100",
        "memory_total_bytes": 80,
        "memory_free_bytes": 0,
        "uuid": "GPU-1",
    }
    return Ready(**{**fields, **changes})


def test_driver_tells_every_card() -> None:
    assert read_nvml(FakeNvml()) == CARDS
    assert read_nvml(None) == ()


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("nvmlSystemGetDriverVersion", [("GPU-0", None), ("GPU-1", None)]),
        ("nvmlDeviceGetUUID", [(None, "610.20")] * 2),
        ("nvmlDeviceGetHandleByIndex", [(None, "610.20")] * 2),
        ("nvmlDeviceGetCount", []),
    ],
)
def test_query_that_fails_costs_one_field_and_no_more(
    failing: str, expected: list[tuple[str | None, str | None]]
) -> None:
    found = read_nvml(FakeNvml(frozenset({failing})))
    assert [(device.uuid, device.driver) for device in found] == expected


def test_machine_without_a_driver_has_no_nvml_or_a_working_one() -> None:
    nvml = load_nvml()
    assert nvml is None or isinstance(read_nvml(nvml), tuple)


@pytest.mark.parametrize(
    ("wanted", "cards", "environment", "expected"),
    [
        ("auto", (), {}, ["cpu"]),
        ("auto", CARDS, {}, ["cuda:0", "cuda:1"]),
        ("auto", CARDS, {"CUDA_VISIBLE_DEVICES": "1"}, ["cuda:0"]),
        ("auto", CARDS, {"CUDA_VISIBLE_DEVICES": ""}, ["cpu"]),
        ("cpu", CARDS, {}, ["cpu"]),
        (("cuda:1",), (), {}, ["cuda:1"]),
        (("cpu", "cuda:0"), CARDS, {}, ["cpu", "cuda:0"]),
    ],
)
def test_devices_are_chosen_as_configured(
    wanted: str | tuple[str, ...],
    cards: tuple[NvmlDevice, ...],
    environment: dict[str, str],
    expected: list[str],
) -> None:
    assert [choice.name for choice in choose_devices(wanted, cards, environment)] == expected


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", ""])
def test_configuration_is_refused_when_it_names_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match=r"worker\.devices: expected"):
        choose_devices((name,), CARDS, {})


def test_cpu_worker_sees_no_card_and_a_card_worker_sees_the_drivers_order() -> None:
    cpu = worker_environment(CPU, {"CUDA_VISIBLE_DEVICES": "0"}, 3)
    assert (cpu["CUDA_VISIBLE_DEVICES"], cpu["OMP_NUM_THREADS"]) == ("", "3")
    # Unbounded, compiled kernels take more memory than any plan has.
    assert cpu["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == cpu["LRU_CACHE_CAPACITY"] == "64"
    cuda = worker_environment(DeviceChoice(kind="cuda"), {"CUDA_VISIBLE_DEVICES": "1", "SECRET": "s"}, 3)
    assert cuda == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "3"}


def test_report_joins_worker_and_driver_by_uuid_and_not_by_index() -> None:
    cards = (NvmlDevice(uuid="GPU-1", driver="one"), NvmlDevice(uuid="GPU-0", driver="zero"))
    choice = DeviceChoice(kind="cuda", index=0)
    report = report_device(choice, cuda_ready(), nvml=cards, cpu=FACTS, measured=MEASURED)
    assert (report.driver, report.name, report.memory_total_bytes) == ("one", "H100", 80)
    # A full card has no free memory; the CPU's must not stand in for it.
    assert report.memory_free_bytes == 0
    assert (report.matmul_gflops, report.read_mb_per_s) == (5, 6)
    for uuid in (None, "GPU-9"):
        other = report_device(choice, cuda_ready(uuid=uuid), nvml=cards, cpu=FACTS, measured=None)
        assert other.driver is None and other.matmul_gflops is None


def test_report_of_a_cpu_takes_name_and_memory_from_the_machine() -> None:
    ready = Ready(architecture="avx512", dtypes=("bf16", "fp32"), runtime="torch 2")
    report = report_device(CPU, ready, nvml=CARDS, cpu=FACTS, measured=None)
    assert (report.name, report.memory_total_bytes, report.memory_free_bytes, report.driver) == (
        "a cpu",
        100,
        60,
        None,
    )


@pytest.mark.parametrize(
    ("limit_file", "used_file"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_containers_limit_counts_when_it_is_lower(tmp_path: Path, limit_file: str, used_file: str) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    (tmp_path / limit_file).parent.mkdir(exist_ok=True)
    (tmp_path / limit_file).write_text("1000000\n")
    (tmp_path / used_file).write_text("400000\n")
    facts = read_cpu(proc=tmp_path, cgroup=tmp_path)
    assert facts == CpuFacts(name="Some CPU @ 3 GHz", memory_total_bytes=1_000_000, memory_free_bytes=600_000)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n", ""])
def test_machines_memory_counts_when_there_is_no_limit(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1\n")
    facts = read_cpu(proc=tmp_path, cgroup=tmp_path)
    assert facts.name == "cpu"
    assert 0 < facts.memory_free_bytes <= facts.memory_total_bytes < 1 << 60


def test_neighbouring_cards_share_a_model() -> None:
    four = tuple(DeviceChoice(kind="cuda", index=i) for i in range(4))
    assert [(choice.name, choice.cards) for choice in share_devices(four, 2)] == [("cuda:0", 2), ("cuda:2", 2)]
    assert share_devices(four, 1) == four
    cpu = (DeviceChoice(kind="cpu"),)
    assert share_devices(cpu, 4) == cpu


@pytest.mark.parametrize("indexes", [(0, 1, 2), (0, 2), (1, 0)])
def test_cards_that_are_no_neighbours_share_nothing(indexes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"worker\.vllm_cards"):
        share_devices(tuple(DeviceChoice(kind="cuda", index=i) for i in indexes), 2)


def test_card_that_is_known_is_the_only_one_its_worker_sees() -> None:
    """Its index changes when another card is lost; its UUID does not."""
    (_first, second) = choose_devices("auto", CARDS, {})
    assert (second.name, second.torch_name) == ("cuda:1", "cuda:0")
    assert worker_environment(second, {}, 1)["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    (named,) = choose_devices(("cuda:1",), CARDS, {})
    assert named.torch_name == "cuda:1" and "CUDA_VISIBLE_DEVICES" not in worker_environment(named, {}, 1)
