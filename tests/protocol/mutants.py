"""Makes hostile variants of good bytes, seeded: of msgpack on its bytes and on its values, of JSON on its tokens.

Speed decides what this can show: a mutant takes 2 to 5 µs here and is read in 5 to 60 µs. Hence a canonical
message is taken apart once, and a change of a value is a piece of ready bytes put in the place of another: nothing
is encoded for it, and what comes out is canonical wherever both pieces are.
"""

import random
import re
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgpack

from protocol.encoding import Plain, _header, encode

Edit: TypeAlias = tuple[int, int, bytes]
"""(start, end, what stands there instead)."""

MARKERS: Final = bytes(
    (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xE0, 0xFF)
)  # every msgpack type byte, and the ends of the ranges of short ones
BOUNDARIES: Final = (
    0, 1, -1, -32, -33, 127, 128, 255, 256, -128, -129, 65_535, 65_536, -32_768, -32_769, (1 << 24), (1 << 24) + 1,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 40, 1 << 53, (1 << 53) + 1, (1 << 63) - 1,
    1 << 63, (1 << 64) - 1, -(1 << 31), -(1 << 63),
)  # fmt: skip
CANONICAL: Final[list[Plain]] = [
    None, True, False, *BOUNDARIES, "", "a", "x" * 64, "x" * 65, "x" * 257, "é" * 40, "../..", "generate",
    b"", bytes(16), bytes(31), bytes(32), bytes(33), b"\xff" * 32, bytes(300), [], [None], [0] * 17, {}, {"a": 1},
    {"x_a": None}, [{}], [[[[]]]], {"a": {"b": {"c": {"d": {}}}}},
]  # fmt: skip
# What a lax reader takes, or chokes on: long forms, duplicate and unsorted keys, keys that are no text, floats,
# extensions, broken UTF-8, headers that promise more than there is, containers in containers.
TWISTED: Final = tuple(
    bytes.fromhex(text)
    for text in (
        "cc01", "cd0001", "ce00000001", "cf0000000000000001", "d0ff", "d1ffff", "d901 61", "da000161", "c5000100",
        "dc0000", "dd00000000", "de0000", "df00000000", "82a16101a16102", "82a16201a16101", "810101", "81c4016101",
        "81c301", "8190c0", "ca00000000", "cb7ff8000000000000", "cb7ff0000000000000", "d40000", "d6ff00000000",
        "c70000", "c70cff000000000000000000000000", "c7ff03", "a3eda080", "a1ff", "a2c328", "c1", "dbffffffff",
        "ddffffffff", "c6ffffffff", "dfffffffff", "cf", "d9", "91" * 9 + "c0", "91" * 200 + "c0",
        "81a161" * 40 + "c0",
    )
)  # fmt: skip


class MsgpackMutator:
    """Endless seeded variants of one canonical encoding; ``others`` lend pieces.

    With ``header`` the data is no msgpack, and only ``on_bytes`` can be had: that many bytes in front are a length
    or a type.
    """

    def __init__(self, seed: str, data: bytes, others: Sequence[bytes] = (), *, header: int = 0) -> None:
        self._random = random.Random(seed)
        self._data = data
        self._others = tuple(others) or (data,)
        self._buffer = bytearray()
        if header:
            self._values = [(at, at + 1) for at in range(header)]
            return
        self._values = [(at, end) for at, end, _children in _walk(data)]
        self._sound = [(at, end, piece) for at, end in self._values for piece in map(encode, CANONICAL)]
        self._twisted = [(at, end, piece) for at, end in self._values for piece in TWISTED]
        self._entries = _map_edits(data)

    def on_bytes(self) -> bytes:
        """Return a variant whose bytes were changed in one to three places, blindly."""
        buffer, bits = self._buffer, self._random.getrandbits
        buffer[:] = self._data
        for _ in range(1 + (bits(4) % 3)):
            self._change(buffer)
            if not buffer:
                buffer.append(bits(8))
        return bytes(buffer)

    def on_values(self) -> bytes:
        """Return a variant in which one or two whole values, keys or entries were exchanged."""
        start, end, piece = self._edit()
        data = self._data
        if self._random.getrandbits(1):
            start2, end2, piece2 = self._edit()
            if end2 <= start:
                return data[:start2] + piece2 + data[end2:start] + piece + data[end:]
            if end <= start2:
                return data[:start] + piece + data[end:start2] + piece2 + data[end2:]
        return data[:start] + piece + data[end:]

    def _edit(self) -> Edit:
        """Return one change; of eight, five are of a value to another of its own type, two to a sound one."""
        bits = self._random.getrandbits
        kind = bits(3)
        if kind == 0:
            # Even shares: the long list would leave a duplicate key to a few mutants in a thousand.
            pool = self._entries if self._entries and bits(1) else self._twisted
            return pool[bits(30) % len(pool)]
        if kind <= 2:
            return self._sound[bits(30) % len(self._sound)]
        start, end = self._values[bits(20) % len(self._values)]
        byte = self._data[start]
        if byte <= 0x7F or byte in _INTEGERS:
            return start, end, msgpack.packb(bits(bits(6)))
        if byte in (0xC4, 0xD9):
            return start + 2, end, self._random.randbytes(end - start - 2)
        if 0xA0 <= byte <= 0xBF:
            return start + 1, end, bytes(97 + value % 26 for value in self._random.randbytes(end - start - 1))
        return start, end, self._data[slice(*self._values[bits(20) % len(self._values)])]

    def _change(self, buffer: bytearray) -> None:
        bits = self._random.getrandbits
        at = bits(24) % len(buffer)
        match bits(8) % 10:
            case 0 | 1:
                buffer[at] ^= 1 << bits(3)
            case 2:
                buffer[at] = bits(8)
            case 3:
                del buffer[at:]
            case 4:
                buffer[at:at] = self._random.randbytes(1 + bits(3))
            case 5:
                del buffer[at : at + 1 + bits(3)]
            case 6:
                buffer[at:at] = buffer[at : at + 1 + bits(5)]
            case 7:
                other = self._others[bits(16) % len(self._others)]
                buffer[at:] = other[bits(24) % len(other) :]
            case 8:
                # A lie about a length or a type, where one stands.
                at = self._values[bits(20) % len(self._values)][0] % len(buffer)
                buffer[at] = MARKERS[bits(16) % len(MARKERS)]
            case _:
                at = self._values[bits(20) % len(self._values)][0] % len(buffer)
                buffer[at : at + 1] = bytes((0xC4 + bits(5) % 28,)) + self._random.randbytes(bits(2))


class JsonMutator:
    """Endless seeded variants of one JSON text."""

    TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+')
    PIECES: Final = (
        b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"9" * 400, b"1.5", b'""', b'"zz"', b"[]",
        b'"\\ud800"', b'"\xff"', b'"' + b"zz" * 32 + b'"', b'"' + b"00" * 32 + b'"',
        b'"' + "é".encode() * 64 + b'"', b"{}",
        b"[" * 3_000, b"[" * 3_000 + b"]" * 3_000, b'{"a":' * 3_000, b'"' + b"ab" * 40_000 + b'"', b"\x00", b"",
    )  # fmt: skip

    def __init__(self, seed: str, data: bytes) -> None:
        self._random = random.Random(seed)
        self._data = data
        self._tokens = [found.span() for found in self.TOKEN.finditer(data)]
        self._short = [(start, end) for start, end in self._tokens if end - start <= 80]

    def variant(self) -> bytes:
        """Return a variant with one token, or one stretch of bytes, replaced."""
        data, bits = self._data, self._random.getrandbits
        # The few labels outweigh the many bytes of hex: mutants of hex are mostly refused for a signature.
        pool = self._short if bits(1) else self._tokens
        start, end = pool[bits(20) % len(pool)]
        match bits(8) % 6:
            case 0 | 1:
                return data[:start] + self.PIECES[bits(16) % len(self.PIECES)] + data[end:]
            case 2:
                other, stop = self._tokens[bits(20) % len(self._tokens)]
                return data[:start] + data[other:stop] + data[end:]
            case 3:
                at = start + bits(24) % (end - start)
                return data[:at] + bytes((data[at] ^ 1 << bits(3),)) + data[at + 1 :]
            case 4:
                return data[: start + bits(24) % (end - start)]
            case _:
                # A key or an element twice.
                return data[:end] + data[start - 2 : end] + data[end:]


_INTEGERS: Final = frozenset((0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3))


def _walk(data: bytes) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Return (start, end, direct children) of every value in canonical bytes, keys among them."""
    found: list[tuple[int, int, list[tuple[int, int]]]] = []

    def value(at: int) -> int:
        skip, children = _header(data, at)
        place = len(found)
        found.append((at, 0, []))
        end = at + skip
        parts = []
        for _ in range(children[0] * children[1] if children else 0):
            start, end = end, value(end)
            parts.append((start, end))
        found[place] = (at, end, parts)
        return end

    assert value(0) == len(data)
    return found


def _map_edits(data: bytes) -> list[Edit]:
    """Return changes of which entries a map has and in which order, its header agreeing with them."""
    edits: list[Edit] = []
    for start, end, parts in _walk(data):
        if not (0x80 <= data[start] <= 0x8F or data[start] in (0xDE, 0xDF)):
            continue
        cuts = [(parts[i][0], parts[i][1], parts[i + 1][1]) for i in range(0, len(parts), 2)]
        entries = [data[first:last] for first, _middle, last in cuts]
        keys = [data[first:middle] for first, middle, _last in cuts]
        for i, entry in enumerate(entries):
            others = entries[:i] + entries[i + 1 :]
            edits.append((start, end, _map(others)))
            edits.append((start, end, _map([*entries[: i + 1], entry, *entries[i + 1 :]])))
            edits.append((start, end, _map([*others, entry])))
            # A new key in its sorted place: behind this one, with one letter more.
            longer = encode(f"{keys[i][1:].decode('ascii', 'ignore')[-20:]}z")
            edits.append((start, end, _map([*entries[: i + 1], longer + b"\x01", *entries[i + 1 :]])))
            for name in ("x_", "x_z", "tip", "k" * 33, ""):
                new = sorted([*others, encode(name) + entry[len(keys[i]) :]], key=lambda it: it[1:20])
                edits.append((start, end, _map(new)))
        extension = [*entries, encode("x_z") + encode([None, {"any": 1}])]
        edits.append((start, end, _map(extension)))
    return edits


def _map(entries: Sequence[bytes]) -> bytes:
    count = len(entries)
    head = bytes((0x80 | count,)) if count < 16 else b"\xde" + count.to_bytes(2, "big")
    return head + b"".join(entries)
