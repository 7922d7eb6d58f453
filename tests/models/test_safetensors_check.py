import json
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from node.errors import ModelError
from node.models.safetensors_check import HEADER_BYTES_MAX, read_header


def file_of(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: str, shape: list[object], start: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def f32(start: int, end: int) -> dict[str, object]:
    return tensor("F32", [(end - start) // 4], start, end)


GOOD = file_of({"__metadata__": {"format": "pt"}, "b": f32(8, 12), "a": f32(0, 8)}, b"x" * 12)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got a file of 0 bytes"),
    "five bytes": (b"12345", "got a file of 5 bytes"),
    "pickle": (pickle.dumps({"weights": list(range(100))}), "header of at most"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "header"),
    "length of 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "header of at most"),
    "header beyond the bound": (file_of(b" " * (HEADER_BYTES_MAX + 1)), "header of at most"),
    "header past the end": (struct.pack("<Q", 200) + b"{}", "the file has 2"),
    "not an object": (file_of([1]), "starts with"),
    "not json": (file_of(b"{nonsense"), "JSON"),
    "not utf-8": (file_of(b'{"\xff": 1}'), "JSON"),
    "deep json": (file_of(b'{"a":' * 100_000), "JSON"),
    "no tensors": (file_of({}), "expected tensors, got none"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, "a": f32(0, 4)}, b"xxxx"), "metadata"),
    "name twice": (file_of(b'{"a": {}, "a": {}}'), "each name once"),
    "field twice": (
        file_of(b'{"a": {"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', b"xxxx"),
        "each name once",
    ),
    "entry is a list": (file_of({"a": [1]}), "expected dtype"),
    "entry has more": (file_of({"a": {**f32(0, 4), "more": 1}}, b"xxxx"), "expected dtype"),
    "three offsets": (file_of({"a": {**f32(0, 4), "data_offsets": [0, 4, 4]}}, b"xxxx"), "expected dtype"),
    "unknown dtype": (file_of({"a": tensor("F7", [1], 0, 4)}, b"xxxx"), "dtype 'F7'"),
    "negative side": (file_of({"a": tensor("F32", [-1, -1], 0, 4)}, b"xxxx"), "positive sides"),
    "empty tensor": (file_of({"a": tensor("F32", [0], 0, 0)}), "positive sides"),
    "overflowing shape": (file_of({"a": tensor("F32", [1 << 62, 0], 0, 0)}), "positive sides"),
    "huge product": (file_of({"a": tensor("F32", [1 << 40, 1 << 40], 0, 4)}, b"xxxx"), "takes"),
    "side is a bool": (file_of({"a": tensor("F32", [True], 0, 4)}, b"xxxx"), "positive sides"),
    "nine sides": (file_of({"a": tensor("F32", [1] * 9, 0, 4)}, b"xxxx"), "positive sides"),
    "shape lies": (file_of({"a": tensor("F32", [2], 0, 4)}, b"xxxx"), "takes 8 bytes, its offsets give 4"),
    "negative offset": (file_of({"a": tensor("F32", [1], -4, 0)}, b"xxxx"), "takes 4 bytes"),
    "overlap": (file_of({"a": f32(0, 8), "b": f32(4, 12)}, b"x" * 12), "overlaps"),
    "hole": (file_of({"a": f32(0, 4), "b": f32(8, 12)}, b"x" * 12), "hole"),
    "hole at the start": (file_of({"a": f32(4, 8)}, b"x" * 8), "hole"),
    "trailing bytes": (file_of({"a": f32(0, 4)}, b"x" * 5), "the file has 5"),
    "cut short": (file_of({"a": f32(0, 8)}, b"x" * 7), "the file has 7"),
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return path

    return write


def test_reader_returns_tensors_when_they_fill_the_file(written: Callable[[bytes], Path]) -> None:
    tensors = read_header(written(GOOD))
    assert {name: (t.dtype, t.shape, t.start, t.end) for name, t in tensors.items()} == {
        "a": ("F32", (2,), 0, 8),
        "b": ("F32", (1,), 8, 12),
    }


@pytest.mark.parametrize("case", HOSTILE)
def test_reader_refuses_and_names_the_file_when_it_is_hostile(case: str, written: Callable[[bytes], Path]) -> None:
    data, fault = HOSTILE[case]
    with pytest.raises(ModelError, match=r"^model\.safetensors: ") as refused:
        read_header(written(data))
    assert fault in str(refused.value)


def test_reader_refuses_twenty_thousand_tensors_by_the_size_of_their_header(
    written: Callable[[bytes], Path],
) -> None:
    header = {f"{i:x}": tensor("U8", [], i, i + 1) for i in range(20_000)}
    raw = json.dumps(header, separators=(",", ":")).encode()
    with pytest.raises(ModelError, match="header of at most"):
        read_header(written(file_of(raw, b"x" * len(header))))


def test_reader_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")


def test_hostile_safetensors_are_refused_in_milliseconds(
    written: Callable[[bytes], Path], figure: Callable[[str, str], None]
) -> None:
    slowest_s = 0.0
    for data, _ in HOSTILE.values():
        path = written(data)
        begun_s = time.process_time()
        with pytest.raises(ModelError):
            read_header(path)
        slowest_s = max(slowest_s, time.process_time() - begun_s)
    figure("hostile safetensors", f"{len(HOSTILE)} refused, the slowest in {slowest_s * 1000:.2f} ms of CPU")
    assert slowest_s < 0.05
