import json
from pathlib import Path

import pytest

from node.errors import ModelError
from node.models.sharded import check_weights
from tests.models.test_safetensors_check import f32, file_of

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLACES = {"a": FIRST, "b": SECOND}


def part(tensor: str) -> bytes:
    return file_of({tensor: f32(0, 8)}, bytes(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FIRST).write_bytes(part("a"))
    (tmp_path / SECOND).write_bytes(part("b"))
    write_index(tmp_path, PLACES)
    return tmp_path


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_parts_are_counted_together_when_the_index_agrees(folder: Path) -> None:
    assert check_weights(folder) == 4


def test_parts_are_refused_when_one_is_missing(folder: Path) -> None:
    (folder / SECOND).unlink()
    with pytest.raises(ModelError, match="all 2 parts"):
        check_weights(folder)


def test_parts_are_refused_when_they_are_numbered_for_another_count(folder: Path) -> None:
    (folder / SECOND).rename(folder / "model-00002-of-00003.safetensors")
    with pytest.raises(ModelError, match="parts of the weights"):
        check_weights(folder)


def test_parts_are_refused_without_an_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"index\.json beside 2 parts"):
        check_weights(folder)


def test_parts_are_refused_when_a_tensor_is_in_both(folder: Path) -> None:
    (folder / SECOND).write_bytes(part("a"))
    with pytest.raises(ModelError, match=f"'a' is in {FIRST} as well"):
        check_weights(folder)


@pytest.mark.parametrize(
    "places", [{"a": FIRST}, PLACES | {"c": FIRST}, {"a": SECOND, "b": SECOND}, PLACES | {"b": "../../etc/passwd"}]
)
def test_parts_are_refused_when_the_index_says_otherwise(folder: Path, places: dict[str, str]) -> None:
    write_index(folder, places)
    with pytest.raises(ModelError, match=r"weight_map|expected in"):
        check_weights(folder)


def test_weights_are_refused_when_they_are_whole_and_in_parts(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(part("c"))
    with pytest.raises(ModelError, match="got both"):
        check_weights(folder)
