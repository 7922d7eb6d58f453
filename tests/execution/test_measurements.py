from pathlib import Path

import pytest

from node.execution.measurements import MODELS_MAX, Delivered, DeviceRates, Measurements
from protocol.units import ModelId

MODEL = ModelId(b"m" * 32)
RATES = DeviceRates(matmul_gflops=10, read_mb_per_s=20)


def measured(path: Path, conditions: str = "driver 1; torch 2") -> Measurements:
    made = Measurements(path)
    made.read()
    made.under("cpu", conditions)
    return made


def test_figures_outlive_the_daemon_while_the_conditions_hold(tmp_path: Path) -> None:
    first = measured(tmp_path / "m.json")
    assert first.rates("cpu") is None and first.tokens_per_s_milli("cpu", MODEL) is None
    first.keep_rates("cpu", RATES)
    first.keep_tokens_per_s_milli("cpu", MODEL, 7)
    first.write()
    again = measured(tmp_path / "m.json")
    assert again.rates("cpu") == RATES and again.tokens_per_s_milli("cpu", MODEL) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("conditions", ["driver 2; torch 2", "driver 1; torch 3"])
def test_everything_is_measured_again_when_driver_or_torch_changed(tmp_path: Path, conditions: str) -> None:
    first = measured(tmp_path / "m.json")
    first.keep_rates("cpu", RATES)
    first.keep_tokens_per_s_milli("cpu", MODEL, 7)
    first.write()
    again = measured(tmp_path / "m.json", conditions)
    assert again.rates("cpu") is None and again.tokens_per_s_milli("cpu", MODEL) is None


@pytest.mark.parametrize("text", ["", "{", '{"cpu": 1}', '{"cpu": {"conditions": "x", "rates": {}}}', "\xff"])
def test_damaged_file_counts_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, "latin-1")
    assert measured(tmp_path / "m.json").rates("cpu") is None


def test_disk_that_refuses_costs_nothing_but_the_figures(tmp_path: Path) -> None:
    made = measured(tmp_path / "absent" / "m.json")
    made.keep_rates("cpu", RATES)
    made.write()
    assert made.rates("cpu") == RATES


def test_models_measured_first_are_forgotten_first(tmp_path: Path) -> None:
    made = measured(tmp_path / "m.json")
    ids = [ModelId(number.to_bytes(32, "big")) for number in range(MODELS_MAX + 1)]
    for model_id in ids:
        made.keep_tokens_per_s_milli("cpu", model_id, 5)
    assert made.tokens_per_s_milli("cpu", ids[0]) is None
    assert made.tokens_per_s_milli("cpu", ids[1]) == made.tokens_per_s_milli("cpu", ids[-1]) == 5


def test_delivered_speed_is_that_of_all_jobs_together() -> None:
    delivered = Delivered()
    assert delivered.tokens_per_s_milli is None
    delivered.add(0, 0.0)
    assert delivered.tokens_per_s_milli is None
    delivered.add(10, 1.0)
    delivered.add(10, 3.0)
    assert delivered.tokens_per_s_milli == 5_000
