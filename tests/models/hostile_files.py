"""Files that were made to hurt whoever opens them, small on the disk and large in what they claim."""

import struct
from collections.abc import Sequence

GGUF_STRING, GGUF_ARRAY, GGUF_UINT32 = 8, 9, 4
Q4_0 = 2


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_key(name: bytes, kind: int, value: bytes) -> bytes:
    return gguf_text(name) + struct.pack("<I", kind) + value


def gguf_tensor(name: bytes, sides: Sequence[int], offset: int, kind: int = 0) -> bytes:
    return (
        gguf_text(name)
        + struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
        + struct.pack("<I", kind)
        + struct.pack("<Q", offset)
    )


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    """Return a GGUF file of what it should have, or of ``counts`` (tensors, keys) that it only claims."""
    head = struct.pack("<4sIQQ", b"GGUF", version, *(counts or (len(tensors), len(keys))))
    body = head + b"".join((*keys, *tensors))
    return body + b"\0" * (-len(body) % 32) + data


GGUF_GOOD = gguf((gguf_key(b"a", GGUF_UINT32, bytes(4)),), (gguf_tensor(b"t", (4, 2), 0),), data=bytes(32))

_ONE = (gguf_tensor(b"t", (4,), 0),)
_LIST_OF = struct.Struct("<IQ")

GGUF_HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "beyond the file"),
    "pickle": (b"\x80\x04\x95" + bytes(40), "expected GGUF"),
    "big end first": (b"GGUF\0\0\0\x03" + bytes(16), "version 2 or 3"),
    "2^63 tensors": (gguf(counts=(1 << 63, 0)), "at most 20000 tensors"),
    "2^40 keys": (gguf(counts=(1, 1 << 40)), "at most 4096 keys"),
    "tensors that are not there": (gguf(counts=(20_000, 0)), "beyond the file"),
    "no tensors": (gguf(), "got none"),
    "text of 2^60 bytes": (gguf((struct.pack("<Q", 1 << 60),), _ONE), "bytes in a key"),
    "text beyond the end": (gguf((struct.pack("<Q", 1000),), _ONE), "beyond the file"),
    "list of 2^60 numbers": (gguf((gguf_key(b"l", GGUF_ARRAY, _LIST_OF.pack(4, 1 << 60)),), _ONE), "items"),
    "list beyond the end": (
        gguf((gguf_key(b"l", GGUF_ARRAY, _LIST_OF.pack(4, 1 << 20)),), _ONE),
        "beyond the file",
    ),
    "list of lists": (gguf((gguf_key(b"l", GGUF_ARRAY, _LIST_OF.pack(9, 1 << 20)),), _ONE), "known type"),
    "unknown type": (gguf((gguf_key(b"k", 99, b""),), _ONE), "known type, got type 99"),
    "key twice": (gguf((gguf_key(b"k", 7, b"\0"),) * 2, _ONE), "each key once"),
    "alignment of zero": (gguf((gguf_key(b"general.alignment", GGUF_UINT32, bytes(4)),), _ONE), "power of two"),
    "alignment of 2^31": (
        gguf((gguf_key(b"general.alignment", GGUF_UINT32, struct.pack("<I", 1 << 31)),), _ONE),
        "power of two",
    ),
    "tensor of 2^47 numbers": (gguf(tensors=(gguf_tensor(b"t", (1 << 47,), 0),)), "the file has"),
    "tensor of a huge product": (gguf(tensors=(gguf_tensor(b"t", (1 << 40,) * 4, 0),)), "the file has"),
    "side of zero": (gguf(tensors=(gguf_tensor(b"t", (4, 0), 0),)), "positive sides"),
    "nine sides": (gguf(tensors=(gguf_tensor(b"t", (1,) * 9, 0),)), "1 to 4 sides"),
    "offset of 2^63": (gguf(tensors=(gguf_tensor(b"t", (4,), 1 << 63),)), "the file has"),
    "overlap": (
        gguf(tensors=(gguf_tensor(b"a", (16,), 0), gguf_tensor(b"b", (16,), 32)), data=bytes(96)),
        "overlaps",
    ),
    "tensor twice": (
        gguf(tensors=(gguf_tensor(b"a", (4,), 0), gguf_tensor(b"a", (4,), 32)), data=bytes(64)),
        "each tensor once",
    ),
    "half a block": (gguf(tensors=(gguf_tensor(b"t", (31,), 0, Q4_0),), data=bytes(64)), "whole blocks"),
    "unknown quantisation": (gguf(tensors=(gguf_tensor(b"t", (32,), 0, 250),), data=bytes(64)), "known type"),
}

JSON_HOSTILE: dict[str, tuple[str, bytes]] = {
    "empty": ("config.json", b""),
    "10^5 levels": ("config.json", b'{"a":' * 100_000),
    "10^5 levels of lists": ("tokenizer.json", b'{"a":' + b"[" * 100_000),
    "20 million lists": ("tokenizer.json", b'{"a":[' + b"[]," * 20_000_000 + b"[]]}"),
    "half a million values": ("config.json", b'{"a":[' + b"1," * 500_000 + b"1]}"),
    "beyond its size": ("config.json", b'{"a":"' + b"x" * (1 << 20) + b'"}'),
    "a list": ("config.json", b"[1]"),
    "not utf-8": ("config.json", b'{"\xff":1}'),
    "cut off": ("tokenizer_config.json", b'{"a": "b'),
    "a number of a million digits": ("config.json", b'{"model_type":' + b"9" * 1_000_000 + b"}"),
    "a context of 2^80": (
        "config.json",
        b'{"model_type":"llama","max_position_embeddings":1208925819614629174706176}',
    ),
    "a context below one": ("config.json", b'{"model_type":"llama","max_position_embeddings":-1}'),
}
