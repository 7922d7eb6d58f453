"""Walks the header of a GGUF file before the library reads it: every count and length is bounded first.

The library believes what it reads: it makes an object for each of as many entries as the file claims to have.
Here nothing is kept but the names of tensors. Layout: the GGUF specification, versions 2 and 3.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from node.errors import ModelError
from node.models.sources import open_regular

# The largest known header, with a vocabulary of 262 000 tokens, has 16 MB; the most merges are 580 000.
HEADER_BYTES_MAX: Final = 128 << 20
KEYS_MAX: Final = 4096
TENSORS_MAX: Final = 20_000
ARRAY_ITEMS_MAX: Final = 1 << 20
STRING_BYTES_MAX: Final = 1 << 20
_DIMENSIONS_MAX: Final = 4
_ALIGNMENT_DEFAULT: Final = 32
_ALIGNMENT_MAX: Final = 1 << 16
_VERSIONS: Final = (2, 3)
_MAGIC: Final = b"GGUF"
_SIZE_OF: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    elements: int
    kind: int
    offset: int


def check_gguf(path: Path) -> int:
    """Check that the header of ``path`` fits its file; return how many bytes its weights take in 16 bits.

    Raises:
        ModelError: it is no GGUF, or its header breaks a bound or contradicts the file.
    """
    with open_regular(path) as file:
        return _Walk(path.name, file, os.fstat(file.fileno()).st_size).check()


class _Walk:
    """One pass over one header."""

    def __init__(self, name: str, file: IO[bytes], size: int) -> None:
        self._name, self._file, self._size = name, file, size
        self._alignment = _ALIGNMENT_DEFAULT
        self._at = 0

    def check(self) -> int:
        magic = self._take(len(_MAGIC), "the magic")
        if magic != _MAGIC:
            raise self._error(f"expected GGUF, got a file that starts with {magic!r}")
        version = self._uint32()
        if version not in _VERSIONS:
            raise self._error(f"expected GGUF version 2 or 3, got {version}")
        tensors, keys = self._count(TENSORS_MAX, "tensors"), self._count(KEYS_MAX, "keys")
        if not tensors:
            raise self._error("expected tensors, got none")
        self._keys(keys)
        return self._layout([self._tensor() for _ in range(tensors)])

    def _keys(self, count: int) -> None:
        seen = set()
        for _ in range(count):
            key = self._string("a key")
            if key in seen:
                raise self._error(f"expected each key once, got {key[:64]!r} twice")
            seen.add(key)
            kind = self._uint32()
            if key == b"general.alignment":
                self._alignment = self._read_alignment(kind)
            else:
                self._skip_value(kind)

    def _read_alignment(self, kind: int) -> int:
        value = self._uint32() if kind == _UINT32 else 0
        if not 8 <= value <= _ALIGNMENT_MAX or value & (value - 1):
            raise self._error(f"expected an alignment that is a power of two up to {_ALIGNMENT_MAX}, got {value}")
        return value

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string("a text")
        elif kind == _ARRAY:
            item = self._uint32()
            count = self._count(ARRAY_ITEMS_MAX, "items in a list")
            if item == _STRING:
                for _ in range(count):
                    self._string("a text")
            else:
                self._take(count * self._size_of(item), "a list")
        else:
            self._take(self._size_of(kind), "a value")

    def _size_of(self, kind: int) -> int:
        # A list of lists is in the format and in no model: it would be a bomb of its own.
        if kind not in _SIZE_OF:
            raise self._error(f"expected a value of a known type, got type {kind}")
        return _SIZE_OF[kind]

    def _tensor(self) -> _Tensor:
        name = self._string("a tensor's name").decode("utf-8", "replace")
        dimensions = self._uint32()
        if not 1 <= dimensions <= _DIMENSIONS_MAX:
            raise self._error(f"tensor {name[:64]!r}: expected 1 to {_DIMENSIONS_MAX} sides, got {dimensions}")
        sides = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions, "sides"))
        if not all(0 < side < 1 << 48 for side in sides):
            raise self._error(f"tensor {name[:64]!r}: expected positive sides, got {sides}")
        kind = self._uint32()
        (offset,) = struct.unpack("<Q", self._take(8, "an offset"))
        return _Tensor(name=name, elements=math.prod(sides), kind=kind, offset=offset)

    def _layout(self, tensors: list[_Tensor]) -> int:
        """Refuse names given twice, and weights that overlap or lie outside the file."""
        begin = -(-self._at // self._alignment) * self._alignment
        sizes = _block_sizes()
        seen: set[str] = set()
        end = 0
        for tensor in sorted(tensors, key=lambda found: found.offset):
            if tensor.name in seen:
                raise self._error(f"expected each tensor once, got {tensor.name[:64]!r} twice")
            seen.add(tensor.name)
            if tensor.kind not in sizes:
                raise self._error(f"tensor {tensor.name[:64]!r}: expected a known type, got type {tensor.kind}")
            block, block_bytes = sizes[tensor.kind]
            if tensor.elements % block:
                raise self._error(f"tensor {tensor.name[:64]!r}: expected whole blocks of {block} numbers")
            if tensor.offset < end or tensor.offset % self._alignment:
                raise self._error(f"tensor {tensor.name[:64]!r}: overlaps the one before, or is not aligned")
            end = tensor.offset + tensor.elements // block * block_bytes
            if begin + end > self._size:
                raise self._error(
                    f"tensor {tensor.name[:64]!r}: ends at byte {begin + end}, the file has {self._size}"
                )
        return 2 * sum(tensor.elements for tensor in tensors)

    def _string(self, what: str) -> bytes:
        return self._take(self._count(STRING_BYTES_MAX, f"bytes in {what}"), what)

    def _count(self, bound: int, what: str) -> int:
        (count,) = struct.unpack("<Q", self._take(8, "a count"))
        if count > bound:
            raise self._error(f"expected at most {bound} {what}, got {count}")
        return int(count)

    def _uint32(self) -> int:
        return int.from_bytes(self._take(4, "a number"), "little")

    def _take(self, count: int, what: str) -> bytes:
        self._at += count
        if self._at > min(self._size, HEADER_BYTES_MAX):
            bound = "the file" if self._at > self._size else f"the bound of {HEADER_BYTES_MAX} bytes"
            raise self._error(f"expected {what} of {count} bytes, which ends beyond {bound}")
        data = self._file.read(count)
        if len(data) != count:
            raise self._error("it became shorter while it was read")
        return data

    def _error(self, fault: str) -> ModelError:
        return ModelError(f"{self._name}: {fault}")


def _block_sizes() -> Mapping[int, tuple[int, int]]:
    """Return numbers and bytes of one block for each type of tensor."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (int(block), int(size)) for kind, (block, size) in GGML_QUANT_SIZES.items()}
