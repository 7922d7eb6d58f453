import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import ModelError
from node.models.json_check import check_json, read_config, read_weights_index
from tests.models.hostile_files import JSON_HOSTILE


def check(path: Path) -> None:
    check_json(path)
    read_config(path)


def refuse(path: Path) -> None:
    with pytest.raises(ModelError, match=rf"^{path.name}: "):
        check(path)


@pytest.mark.parametrize("case", [name for name in JSON_HOSTILE if name != "20 million lists"])
def test_json_is_refused_and_named_when_it_is_hostile(case: str, tmp_path: Path) -> None:
    name, data = JSON_HOSTILE[case]
    (tmp_path / name).write_bytes(data)
    refuse(tmp_path / name)


@pytest.mark.slow
def test_hostile_json_is_refused_in_milliseconds_and_allocates_no_more_than_its_size(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    slowest_s = 0.0
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in JSON_HOSTILE.values():
        path = tmp_path / name
        path.write_bytes(data)
        begun_s = time.process_time()
        refuse(path)
        slowest_s = max(slowest_s, time.process_time() - begun_s)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib) // 1024
    figure(
        "hostile JSON files",
        f"{len(JSON_HOSTILE)} refused, the slowest (60 MB) in {slowest_s * 1000:.1f} ms of CPU, {grown_mib} MiB",
    )
    # Twice the largest file: the test itself writes it, the check reads it. As objects it takes 1.3 GB.
    assert grown_mib < 160


def test_known_files_pass(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "max_position_embeddings": 64, "nested": {"a": [1, {"b": null}]}}')
    check_json(path)
    assert read_config(path).max_position_embeddings == 64
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}}')
    check_json(index)
    assert read_weights_index(index) == {"a": "model.safetensors"}


def test_index_is_refused_when_it_maps_to_no_text(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(ModelError, match="weight_map"):
        read_weights_index(index)
