import struct

import pytest

from protocol.tensors import bytes_of, read_tensors, values_of
from scripts.spec.items import floats, tensor_file

DATA = tensor_file(
    ("f32", "F32", (2,), floats(0.5, -2.0)),
    ("f16", "F16", (2,), struct.pack("<2e", 0.5, -2.0)),
    ("bf16", "BF16", (2,), floats(0.5)[2:] + floats(-2.0)[2:]),
    ("i64", "I64", (1, 2), struct.pack("<2q", 5, -(1 << 40))),
    ("flag", "BOOL", (), b"\1"),
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("f32", [0.5, -2.0]),
        ("f16", [0.5, -2.0]),
        ("bf16", [0.5, -2.0]),
        ("i64", [5, -(1 << 40)]),
        ("flag", [1]),
    ],
)
def test_numbers_of_a_tensor_are_read_in_their_dtype(name: str, values: list[float]) -> None:
    assert list(values_of(DATA, read_tensors(DATA)[name])) == values


def test_bytes_of_a_tensor_are_those_of_the_file() -> None:
    assert bytes_of(DATA, read_tensors(DATA)["i64"]) == struct.pack("<2q", 5, -(1 << 40))


def test_header_is_refused_when_it_is_shorter_than_its_length_says() -> None:
    with pytest.raises(ValueError, match="5 bytes of header, the file has 2"):
        read_tensors(struct.pack("<Q", 5) + b"{}")
