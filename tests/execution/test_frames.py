import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.execution.frames import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    Cancel,
    Failed,
    FromWorker,
    Prepare,
    Ready,
    Step,
    StepPiece,
    ToWorker,
    decode_from_worker,
    decode_to_worker,
    encode_frame,
    frame_length,
)
from protocol.task import ChatMessage


@pytest.mark.parametrize(
    "frame",
    [
        Cancel(request=3),
        Prepare(
            request=1,
            model=b"m" * 32,
            messages=(ChatMessage(role="user", content="é"),),
            prompt="",
            stop=("x",),
            held=b"\x00\x00\x00\x07",
            tokens_out_max=4,
            scope=b"peer",
        ),
    ],
)
def test_frame_to_a_worker_round_trips(frame: ToWorker) -> None:
    data = encode_frame(frame)
    assert frame_length(data[:LENGTH_BYTES]) == len(data) - LENGTH_BYTES
    assert decode_to_worker(data[LENGTH_BYTES:]) == frame


@pytest.mark.parametrize(
    "frame",
    [
        Ready(architecture="avx512", dtypes=("fp32",), runtime="torch"),
        Failed(request=1, code="input", message="no"),
        Step(pieces=(StepPiece(request=1, tokens=(5, 6), text="é", finish="stop"),)),
        Step(pieces=()),
    ],
)
def test_frame_from_a_worker_round_trips(frame: FromWorker) -> None:
    assert decode_from_worker(encode_frame(frame)[LENGTH_BYTES:]) == frame


@given(st.binary(max_size=64))
def test_arbitrary_bytes_raise_nothing_but_value_errors(data: bytes) -> None:
    for decode in (decode_to_worker, decode_from_worker):
        with pytest.raises(ValueError):
            decode(data)


def test_length_beyond_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        frame_length((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
