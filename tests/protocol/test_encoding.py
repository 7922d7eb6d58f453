import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.encoding import INT_MAX, INT_MIN, Plain, decode_untrusted, encode
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from tests.protocol.fakes import mutants, reason_of

keys = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=8)
scalars = (
    st.none() | st.booleans() | st.integers(INT_MIN, INT_MAX) | st.text(max_size=40) | st.binary(max_size=300)
)
plains = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@pytest.mark.slow
@given(plains)
def test_encoding_returns_the_value_when_read_again(value: Plain) -> None:
    try:
        data = encode(value)
    except LocalProtocolError:
        return  # deeper than allowed
    assert decode_untrusted(data) == value


@given(st.binary(max_size=200))
def test_decoder_raises_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    try:
        value = decode_untrusted(data)
    except RemoteProtocolError:
        return
    assert encode(value) == data


@pytest.mark.slow
@given(plains)
def test_decoder_accepts_only_what_encodes_to_itself_when_any_packer_wrote_it(value: Plain) -> None:
    data = msgpack.packb(value, use_bin_type=True)
    try:
        read = decode_untrusted(data)
    except RemoteProtocolError:
        return
    assert encode(read) == data


@pytest.mark.slow
def test_decoder_raises_one_class_when_fed_mutants() -> None:
    seed: Plain = {
        "a": [1, -1, 300, b"\x00" * 40, None, True],
        "b": {"c": "ü" * 20, "d": [[[]], {}]},
        "z": 1 << 63,
    }
    for mutant in mutants(b"encoding", encode(seed), 20_000):
        try:
            value = decode_untrusted(mutant)
        except RemoteProtocolError:
            continue
        assert encode(value) == mutant


def test_decoder_refuses_every_cut_when_read_byte_by_byte() -> None:
    data = encode({"a": [1, 300, "text", b"bytes"], "b": {"c": None}})
    for length in range(len(data)):
        assert reason_of(decode_untrusted, data[:length]) is Reason.ENCODING
    assert reason_of(decode_untrusted, data) is None
    assert reason_of(decode_untrusted, data + b"\xc0") is Reason.ENCODING


REFUSED = {
    "duplicate keys": bytes.fromhex("82a16101a16102"),
    "keys out of order": bytes.fromhex("82a16201a16101"),
    "empty key": bytes.fromhex("81a001"),
    "key not ASCII": bytes.fromhex("81a2c3a901"),
    "key of bytes": bytes.fromhex("81c4016101"),
    "key of int": bytes.fromhex("810101"),
    "key of nil": bytes.fromhex("81c001"),
    "key of array": bytes.fromhex("819001"),
    "long key": b"\x81\xd9\x21" + b"k" * 33 + b"\x01",
    "uint8 for a fixint": bytes.fromhex("cc01"),
    "uint16 for a uint8": bytes.fromhex("cd00ff"),
    "uint64 for a uint32": bytes.fromhex("cf00000000ffffffff"),
    "int8 for a fixint": bytes.fromhex("d0ff"),
    "int16 for a positive": bytes.fromhex("d100ff"),
    "str8 for a fixstr": bytes.fromhex("d90161"),
    "bin16 for a bin8": bytes.fromhex("c5000161"),
    "array16 for a fixarray": bytes.fromhex("dc000101"),
    "map16 for a fixmap": bytes.fromhex("de0001a16101"),
    "float32": bytes.fromhex("ca3f800000"),
    "float64": bytes.fromhex("cb3ff0000000000000"),
    "NaN": bytes.fromhex("cb7ff8000000000000"),
    "fixext": bytes.fromhex("d40100"),
    "ext8": bytes.fromhex("c7010100"),
    "timestamp": bytes.fromhex("d6ff00000000"),
    "reserved byte": bytes.fromhex("c1"),
    "bad UTF-8": bytes.fromhex("a2c328"),
    "surrogate": bytes.fromhex("a3eda080"),
    "overlong UTF-8": bytes.fromhex("a2c081"),
    "nothing": b"",
    "array of 4 GiB": bytes.fromhex("ddffffffff"),
    "map of 4 GiB": bytes.fromhex("dfffffffff"),
    "bin of 4 GiB": bytes.fromhex("c6ffffffff"),
    "nine deep": b"\x91" * 9 + b"\xc0",
    "nine deep and empty": b"\x91" * 8 + b"\x90",
    "a thousand deep": b"\x91" * 1000,
    "257 entries": b"\xdc\x01\x01" + b"\xc0" * 257,
    "257 keys": b"\xde\x01\x01" + b"\xa1a\xc0" * 257,
    "4097 values": b"\xdc\x00\x10" + (b"\xdc\x01\x00" + b"\xc0" * 256) * 16,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_decoder_refuses_bytes_when_they_are_not_canonical_or_bounded(data: bytes) -> None:
    assert reason_of(decode_untrusted, data) is Reason.ENCODING


def test_decoder_refuses_bytes_when_they_are_too_many() -> None:
    data = encode(b"\x00" * (limits.BODY_BYTES_MAX - 3))
    assert len(data) == limits.BODY_BYTES_MAX
    assert reason_of(decode_untrusted, data) is None
    assert reason_of(decode_untrusted, data + b"\x00") is Reason.SIZE


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        {1: 1},
        {"": 1},
        {"é": 1},
        {"k" * 33: 1},
        {b"a": 1},
        1 << 64,
        -(1 << 63) - 1,
        "\ud800",
        (1,),
        {1},
        [1.5],
    ],
    ids=repr,
)
def test_encoder_refuses_a_value_when_it_has_no_canonical_form(value: Plain) -> None:
    with pytest.raises(LocalProtocolError):
        encode(value)


def test_encoder_and_decoder_agree_when_a_value_is_at_a_bound() -> None:
    deep: Plain = None
    for _ in range(limits.DEPTH_MAX):
        deep = [deep]
    wide: Plain = [None] * limits.ENTRIES_MAX
    rows = [256] * 15 + [239]
    many: list[Plain] = [[None] * count for count in rows]  # 1 + 15·257 + 240 = 4096
    bounds: list[Plain] = [deep, wide, many]
    for value in bounds:
        assert decode_untrusted(encode(value)) == value
    too_much: list[Plain] = [[deep], [None] * (limits.ENTRIES_MAX + 1), [*many, None]]
    for value in too_much:
        with pytest.raises(LocalProtocolError):
            encode(value)


def test_encoder_writes_one_form_when_keys_come_in_another_order() -> None:
    assert (
        encode({"b": 1, "a": 2, "ab": 3})
        == encode({"ab": 3, "a": 2, "b": 1})
        == bytes.fromhex("83a16102a2616203a16201")
    )


def test_decoder_keeps_true_apart_when_one_has_the_same_python_value() -> None:
    assert decode_untrusted(b"\xc3") is True
    assert type(decode_untrusted(b"\x01")) is int


def test_decoder_stops_counting_when_there_are_too_many_values() -> None:
    # Cut off: only a scan that gives up at the bound says so instead of missing the rest.
    with pytest.raises(RemoteProtocolError, match="more than 4096 values"):
        decode_untrusted(b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\xc0" * 256) * 16)
