"""Canonical msgpack: one value has one encoding, and only that one is read (spec 01, section 1).

The msgpack library promises no determinism and reads duplicate keys and over-long integers silently, so the
canonical form is enforced here: bound by a scan before anything is built, then decode, then re-encode and
compare.
"""

from typing import Final, TypeAlias

import msgpack

from protocol import limits
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError

Plain: TypeAlias = "bool | int | str | bytes | list[Plain] | dict[str, Plain] | None"

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1

# msgpack type byte -> (bytes of the length or value that follow, what they count)
_FIXED_BYTES: Final = {
    0xC0: 0,
    0xC2: 0,
    0xC3: 0,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}
# Canonical as they are: no call for each of them, which are most values of a message.
_LEAVES: Final = frozenset((type(None), bool, str, bytes))
_BLOB_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY_LENGTH_BYTES: Final = {0xDC: 2, 0xDD: 4}
_MAP_LENGTH_BYTES: Final = {0xDE: 2, 0xDF: 4}


def encode(value: Plain, *, entries_max: int = limits.ENTRIES_MAX) -> bytes:
    """Return the canonical bytes of ``value``.

    Raises:
        LocalProtocolError: the value has no canonical form (a float, a key that is not ASCII, too deep).
    """
    try:
        packed = msgpack.packb(
            _canonical(value, limits.DEPTH_MAX, entries_max), use_bin_type=True, strict_types=True
        )
    except UnicodeEncodeError as exc:
        raise LocalProtocolError("text is not valid UTF-8", reason=Reason.ENCODING) from exc
    assert isinstance(packed, bytes)
    # Every value takes a byte at least: most messages are too short to hold too many.
    if len(packed) > limits.VALUES_MAX and _count(value) > limits.VALUES_MAX:
        raise LocalProtocolError(f"more than {limits.VALUES_MAX} values", reason=Reason.ENCODING)
    return packed


def decode_untrusted(
    data: bytes, *, size_max: int = limits.BODY_BYTES_MAX, entries_max: int = limits.ENTRIES_MAX
) -> Plain:
    """Return the value whose canonical encoding is ``data``; raises nothing but ``RemoteProtocolError``."""
    if len(data) > size_max:
        raise RemoteProtocolError(f"{len(data)} bytes, at most {size_max} are read", reason=Reason.SIZE)
    _scan(data, entries_max)
    try:
        value: Plain = msgpack.unpackb(data, raw=False, strict_map_key=True, ext_hook=_refuse_ext)
        # Duplicate keys, over-long integers and unsorted maps all show here.
        if encode(value, entries_max=entries_max) != data:
            raise RemoteProtocolError("bytes are not in canonical form", reason=Reason.ENCODING)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as exc:
        raise RemoteProtocolError(f"not msgpack: {type(exc).__name__}", reason=Reason.ENCODING) from exc
    except LocalProtocolError as exc:
        raise RemoteProtocolError(str(exc), reason=Reason.ENCODING) from exc
    return value


def _canonical(value: Plain, depth_left: int, entries_max: int) -> Plain:
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is int:
        assert isinstance(value, int)
        if not INT_MIN <= value <= INT_MAX:
            raise LocalProtocolError(f"integer {value} is outside 64 bits", reason=Reason.ENCODING)
        return value
    if kind not in (list, dict):
        raise LocalProtocolError(f"{kind.__name__} has no canonical form", reason=Reason.ENCODING)
    assert isinstance(value, list | dict)
    if depth_left == 0:
        raise LocalProtocolError(f"deeper than {limits.DEPTH_MAX} containers", reason=Reason.ENCODING)
    if len(value) > entries_max:
        raise LocalProtocolError(f"{len(value)} entries, at most {entries_max}", reason=Reason.ENCODING)
    if isinstance(value, list):
        return [item if type(item) in _LEAVES else _canonical(item, depth_left - 1, entries_max) for item in value]
    for key in value:
        if type(key) is not str or not key.isascii() or not 0 < len(key) <= limits.KEY_BYTES_MAX:
            raise LocalProtocolError("map keys are 1 to 32 ASCII characters", reason=Reason.ENCODING)
    return {
        key: item if type(item := value[key]) in _LEAVES else _canonical(item, depth_left - 1, entries_max)
        for key in sorted(value)
    }


def _count(value: Plain) -> int:
    """Return how many values are written for ``value``, map keys among them."""
    if isinstance(value, list):
        return 1 + sum(_count(item) for item in value)
    if isinstance(value, dict):
        return 1 + sum(1 + _count(item) for item in value.values())
    return 1


def _refuse_ext(code: int, _data: bytes) -> Plain:
    raise ValueError(f"extension type {code}")


def _scan(data: bytes, entries_max: int) -> None:
    """Bound depth, entries and values in one pass, without building anything."""
    at, end, values = 0, len(data), 0
    open_containers = [1]
    while open_containers:
        if open_containers[-1] == 0:
            open_containers.pop()
            continue
        open_containers[-1] -= 1
        values += 1
        if values > limits.VALUES_MAX:
            raise RemoteProtocolError(f"more than {limits.VALUES_MAX} values", reason=Reason.ENCODING)
        if at >= end:
            raise RemoteProtocolError("bytes end inside a value", reason=Reason.ENCODING)
        skip, children = _header(data, at)
        at += skip
        if at > end:
            raise RemoteProtocolError("bytes end inside a value", reason=Reason.ENCODING)
        if children is None:
            continue
        count, per_entry = children
        if count > entries_max:
            raise RemoteProtocolError(f"{count} entries, at most {entries_max}", reason=Reason.ENCODING)
        open_containers.append(count * per_entry)
        if len(open_containers) > limits.DEPTH_MAX + 1:
            raise RemoteProtocolError(f"deeper than {limits.DEPTH_MAX} containers", reason=Reason.ENCODING)
    if at != end:
        raise RemoteProtocolError(f"{end - at} bytes after the value", reason=Reason.ENCODING)


def _header(data: bytes, at: int) -> tuple[int, tuple[int, int] | None]:
    """Return the bytes to step over, and (entries, values per entry) where a container opens."""
    byte = data[at]
    if byte <= 0x7F or byte >= 0xE0:
        return 1, None
    if byte <= 0x8F:
        return 1, (byte & 15, 2)
    if byte <= 0x9F:
        return 1, (byte & 15, 1)
    if byte <= 0xBF:
        return 1 + (byte & 31), None
    if byte in _FIXED_BYTES:
        return 1 + _FIXED_BYTES[byte], None
    for table, per_entry in ((_BLOB_LENGTH_BYTES, 0), (_ARRAY_LENGTH_BYTES, 1), (_MAP_LENGTH_BYTES, 2)):
        if byte in table:
            width = table[byte]
            length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            if per_entry:
                return 1 + width, (length, per_entry)
            return 1 + width + length, None
    raise RemoteProtocolError(f"type byte {byte:#04x} is not in the canonical subset", reason=Reason.ENCODING)
