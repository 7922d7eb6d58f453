"""Reads a safetensors header and checks it against its file before any library opens it (spec 04, section 8).

The library accepts what costs time or hides something: half a million empty tensors (31 MB of header, 5 s,
404 MB) and a name given twice, of which one wins silently. Every fault is a ``ValueError``: whose fault it is, the
caller knows. Model files are read through ``node/models/safetensors_check.py``.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

LENGTH_BYTES: Final = 8
# A model of 70 billion parameters has a header of about 90 KB with 723 tensors. No header within this bound holds
# 20 000 tensors: none may be empty, so an entry takes 55 bytes and more.
HEADER_BYTES_MAX: Final = 1 << 20
_DIMENSIONS_MAX: Final = 8
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
_CODES: Final = {"F64": "d", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}


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


def header_length(prefix: bytes, size: int) -> int:
    """Return how long the header is in a file of ``size`` bytes that starts with ``prefix``.

    Raises:
        ValueError: no header of a bearable length can follow.
    """
    if len(prefix) < LENGTH_BYTES:
        raise ValueError(f"expected safetensors, got a file of {size} bytes")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    # A pickle or a zip archive shows here: its first bytes read as a length beyond any file.
    if length > HEADER_BYTES_MAX:
        raise ValueError(f"expected a safetensors header of at most {HEADER_BYTES_MAX} bytes, got {length}")
    if length > size - LENGTH_BYTES:
        raise ValueError(f"expected {length} bytes of header, the file has {size - LENGTH_BYTES}")
    return length


def read_header(header: bytes, size: int) -> dict[str, Tensor]:
    """Return the tensors that a header declares, once they fill its file of ``size`` bytes exactly.

    Raises:
        ValueError: it is no header, breaks a bound or contradicts the file.
    """
    if header[:1] != b"{":
        raise ValueError(f"expected a header that starts with '{{', got {header[:1]!r}")
    tensors = _tensors(_parse(header))
    _check_layout(tensors, size - LENGTH_BYTES - len(header))
    return tensors


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a whole file in memory. Raises: ValueError."""
    length = header_length(data[:LENGTH_BYTES], len(data))
    return read_header(data[LENGTH_BYTES : LENGTH_BYTES + length], len(data))


def bytes_of(data: bytes, tensor: Tensor) -> bytes:
    """Return the bytes of one tensor of a file that was read with ``read_tensors``."""
    first = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    return data[first + tensor.start : first + tensor.end]


def values_of(data: bytes, tensor: Tensor) -> Sequence[float]:
    """Return the numbers of one tensor of a file that was read with ``read_tensors``."""
    raw, code = bytes_of(data, tensor), _CODES.get(tensor.dtype, "f")
    if tensor.dtype == "BF16":
        # The upper half of a single-precision number.
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    return struct.unpack(f"<{tensor.elements}{code}", raw)


def _parse(raw: bytes) -> dict[str, Any]:  # Any: checked entry by entry in _tensor
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise _TwiceError("expected each name once in the header, got one twice")
        return entries

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except _TwiceError:
        raise
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"expected a header in JSON, got {type(exc).__name__}") from exc
    if not isinstance(header, dict):
        raise ValueError(f"expected a header that is an object, got {type(header).__name__}")
    return header


class _TwiceError(ValueError):
    """A name stands twice."""


def _tensors(header: dict[str, Any]) -> dict[str, Tensor]:  # Any: as _parse gave it
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("expected metadata of texts only")
    if not header:
        raise ValueError("expected tensors, got none")
    return {key: _tensor(key, entry) for key, entry in header.items()}


def _tensor(key: str, entry: object) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)], **rest} if not rest:
            pass
        case _:
            raise ValueError(f"tensor {key!r}: expected dtype, shape and two data_offsets")
    if dtype not in _BYTES_OF:
        raise ValueError(f"tensor {key!r}: expected one of {', '.join(_BYTES_OF)}, got dtype {dtype!r}")
    if len(shape) > _DIMENSIONS_MAX or not all(type(side) is int and 0 < side < 1 << 48 for side in shape):
        raise ValueError(f"tensor {key!r}: expected up to {_DIMENSIONS_MAX} positive sides, got {shape}")
    tensor = Tensor(dtype=dtype, shape=tuple(shape), start=start, end=end)
    expected = tensor.elements * _BYTES_OF[dtype]
    if start < 0 or end - start != expected:
        raise ValueError(
            f"tensor {key!r}: shape {shape} of {dtype} takes {expected} bytes, its offsets give {end - start}"
        )
    return tensor


def _check_layout(tensors: dict[str, Tensor], data_bytes: int) -> None:
    """Refuse holes, overlaps and bytes after the last tensor."""
    at = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        if tensor.start != at:
            fault = "overlaps the one before" if tensor.start < at else "leaves a hole before it"
            raise ValueError(f"tensor {key!r}: expected to start at {at}, got {tensor.start}: it {fault}")
        at = tensor.end
    if at != data_bytes:
        raise ValueError(f"expected {at} bytes of weights, the file has {data_bytes}")
