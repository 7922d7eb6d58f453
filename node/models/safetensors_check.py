"""Reads and checks the header of a safetensors file before any library opens the file.

The library accepts what costs time or hides something: half a million empty tensors (31 MB of header, 5 s,
404 MB) and a name given twice, of which one wins silently. It needs no torch and never reads the weights.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError

# A model of 70 billion parameters has a header of about 90 KB with 723 tensors. No header within this bound holds
# 20 000 tensors: none may be empty, so an entry takes 55 bytes and more.
HEADER_BYTES_MAX: Final = 1 << 20
_DIMENSIONS_MAX: Final = 8
_LENGTH_BYTES: Final = 8
_BYTES_OF: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of a header: ``start`` and ``end`` are bytes from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors that ``path`` declares, once they fill the file exactly.

    Raises:
        ModelError: the file is not safetensors, or its header breaks a bound or contradicts the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = _header_bytes(path.name, size, file.read(_LENGTH_BYTES), file.read(HEADER_BYTES_MAX))
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read: {exc}") from exc
    tensors = _tensors(path.name, _parse(path.name, raw))
    _check_layout(path.name, tensors, size - _LENGTH_BYTES - len(raw))
    return tensors


def _header_bytes(name: str, size: int, prefix: bytes, rest: bytes) -> bytes:
    if len(prefix) < _LENGTH_BYTES:
        raise ModelError(f"{name}: expected safetensors, got a file of {size} bytes")
    length = int.from_bytes(prefix, "little")
    # A pickle or a zip archive shows here: its first bytes read as a length beyond any file.
    if length > HEADER_BYTES_MAX:
        raise ModelError(
            f"{name}: expected a safetensors header of at most {HEADER_BYTES_MAX} bytes, got {length}"
        )
    if length > size - _LENGTH_BYTES or len(rest) < length:
        raise ModelError(f"{name}: expected {length} bytes of header, the file has {size - _LENGTH_BYTES}")
    if rest[:1] != b"{":
        raise ModelError(f"{name}: expected a header that starts with '{{', got {rest[:1]!r}")
    return rest[:length]


def _parse(name: str, raw: bytes) -> dict[str, Any]:  # Any: checked entry by entry in _tensor
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ModelError(f"{name}: expected each name once in the header, got one twice")
        return entries

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{name}: expected a header in JSON, got {type(exc).__name__}") from exc
    if not isinstance(header, dict):
        raise ModelError(f"{name}: expected a header that is an object, got {type(header).__name__}")
    return header


def _tensors(name: str, header: dict[str, Any]) -> dict[str, Tensor]:  # Any: as _parse gave it
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{name}: expected metadata of texts only")
    if not header:
        raise ModelError(f"{name}: expected tensors, got none")
    return {key: _tensor(name, key, entry) for key, entry in header.items()}


def _tensor(name: str, key: str, entry: object) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)], **rest} if not rest:
            pass
        case _:
            raise ModelError(f"{name}: tensor {key!r}: expected dtype, shape and two data_offsets")
    if dtype not in _BYTES_OF:
        raise ModelError(f"{name}: tensor {key!r}: expected one of {', '.join(_BYTES_OF)}, got dtype {dtype!r}")
    if len(shape) > _DIMENSIONS_MAX or not all(type(side) is int and 0 < side < 1 << 48 for side in shape):
        raise ModelError(f"{name}: tensor {key!r}: expected up to {_DIMENSIONS_MAX} positive sides, got {shape}")
    tensor = Tensor(dtype=dtype, shape=tuple(shape), start=start, end=end)
    expected = tensor.elements * _BYTES_OF[dtype]
    if start < 0 or end - start != expected:
        raise ModelError(
            f"{name}: tensor {key!r}: shape {shape} of {dtype} takes {expected} bytes, "
            f"its offsets give {end - start}"
        )
    return tensor


def _check_layout(name: str, tensors: dict[str, Tensor], data_bytes: int) -> None:
    """Refuse holes, overlaps and bytes after the last tensor."""
    at = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != at:
            fault = "overlaps the one before" if tensor.start < at else "leaves a hole before it"
            raise ModelError(f"{name}: tensor {key!r}: expected to start at {at}, got {tensor.start}: it {fault}")
        at = tensor.end
    if at != data_bytes:
        raise ModelError(f"{name}: expected {at} bytes of weights, the file has {data_bytes}")
