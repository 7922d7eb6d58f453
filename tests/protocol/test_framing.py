import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import framing, limits
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.framing import (
    AliveFrame,
    EnvelopeFrame,
    Frame,
    InputFrame,
    OutputFrame,
    decode_frame_untrusted,
    encode_frame,
    split_input,
)
from tests.protocol.fakes_spec import SPEC

sequences = st.integers(0, (1 << 32) - 1)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(EnvelopeFrame, st.binary(max_size=50)),
    st.builds(InputFrame, sequences, st.binary(max_size=50)),
    st.builds(OutputFrame, sequences, st.binary(max_size=50)),
    st.just(AliveFrame()),
)


@given(frames)
def test_frame_is_the_same_when_it_is_read_again(frame: Frame) -> None:
    assert decode_frame_untrusted(encode_frame(frame)) == frame


@given(st.binary(max_size=40))
def test_frame_reader_raises_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    try:
        frame = decode_frame_untrusted(data)
    except RemoteProtocolError:
        return
    assert encode_frame(frame) == data


@pytest.mark.parametrize("kind", [InputFrame, OutputFrame])
def test_data_frame_is_refused_when_it_is_one_byte_too_long(kind: type[InputFrame | OutputFrame]) -> None:
    full = kind(7, bytes(limits.DATA_FRAME_BYTES_MAX))
    data = encode_frame(full)
    assert decode_frame_untrusted(data) == full
    with pytest.raises(RemoteProtocolError):
        decode_frame_untrusted(data + b"\x00")
    with pytest.raises(LocalProtocolError):
        encode_frame(kind(7, bytes(limits.DATA_FRAME_BYTES_MAX + 1)))


def test_envelope_frame_is_refused_when_it_is_one_byte_too_long() -> None:
    raw = bytes(framing.ENVELOPE_FRAME_BYTES_MAX - 1)
    assert decode_frame_untrusted(encode_frame(EnvelopeFrame(raw))) == EnvelopeFrame(raw)
    with pytest.raises(LocalProtocolError):
        encode_frame(EnvelopeFrame(raw + b"\x00"))


@given(st.integers(0, 3 * limits.DATA_FRAME_BYTES_MAX))
def test_input_is_cut_into_frames_behind_its_salt(size: int) -> None:
    salt, data = b"s" * 16, bytes(size)
    frames = split_input(salt, data)
    assert [frame.sequence for frame in frames] == list(range(len(frames)))
    assert frames[0].data == salt
    assert b"".join(frame.data for frame in frames[1:]) == data
    assert all(0 < len(frame.data) <= limits.DATA_FRAME_BYTES_MAX for frame in frames)


def test_end_mark_is_a_length_that_no_frame_has() -> None:
    assert max(framing.FRAME_BYTES_MAX, framing.ENVELOPE_FRAME_BYTES_MAX) < framing.END_MARK


def test_specification_names_the_streams() -> None:
    text = (SPEC / "02-transport.md").read_text("utf-8")
    for protocol in (framing.QUOTE_PROTOCOL, framing.JOB_PROTOCOL, framing.ADVERT_PROTOCOL):
        assert f"| `{protocol}` |" in text
