import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.task import (
    ChatMessage,
    GenerateInput,
    GenerateOutput,
    decode_input_untrusted,
    decode_output_untrusted,
    encode_input,
    encode_output,
)
from scripts.spec import examples
from tests.protocol.fakes import mutants, reason_of

turns = st.builds(ChatMessage, role=st.sampled_from(["system", "user", "assistant"]), content=st.text(max_size=20))
outputs = st.builds(
    GenerateOutput,
    tokens=st.lists(st.integers(0, (1 << 32) - 1), max_size=5).map(tuple),
    text=st.text(max_size=20),
    finish=st.sampled_from([None, "stop", "length"]),
)


@given(st.lists(turns, min_size=1, max_size=4).map(tuple), st.lists(st.text(min_size=1, max_size=9), max_size=3))
def test_input_is_the_same_when_it_is_read_again(messages: tuple[ChatMessage, ...], stop: list[str]) -> None:
    task_input = GenerateInput(messages=messages, stop=tuple(stop))
    assert decode_input_untrusted(encode_input(task_input)) == task_input


@given(outputs)
def test_output_is_the_same_when_it_is_read_again(output: GenerateOutput) -> None:
    assert decode_output_untrusted(encode_output(output)) == output


@given(st.binary(max_size=60))
def test_task_readers_raise_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    assert reason_of(decode_input_untrusted, data) is not None
    assert reason_of(decode_output_untrusted, data) is not None


def test_task_readers_raise_one_class_when_fed_mutants() -> None:
    for mutant in mutants(b"input", examples.INPUT_BYTES, 2_000):
        reason_of(decode_input_untrusted, mutant)
    for mutant in mutants(b"output", encode_output(examples.OUTPUTS[1]), 2_000):
        reason_of(decode_output_untrusted, mutant)


def test_input_is_refused_when_it_is_over_its_bound() -> None:
    room = limits.INPUT_BYTES_MAX - len(encode_input(GenerateInput(prompt="x" * 70_000))) + 70_000
    full = GenerateInput(prompt="x" * room)
    assert len(encode_input(full)) == limits.INPUT_BYTES_MAX
    assert decode_input_untrusted(encode_input(full)) == full
    with pytest.raises(LocalProtocolError):
        encode_input(GenerateInput(prompt="x" * (room + 1)))
    assert reason_of(decode_input_untrusted, bytes(limits.INPUT_BYTES_MAX + 1)) is Reason.SIZE


@pytest.mark.slow
def test_input_is_refused_at_once_when_it_is_a_million_empty_containers() -> None:
    data = b"\x9f" + (b"\xdc\x00\xff" + (b"\xdc\x01\x00" + b"\x80" * 256) * 255) * 15
    assert reason_of(decode_input_untrusted, data) is Reason.ENCODING


def test_largest_conversation_fits_the_bound_on_values() -> None:
    turn = ChatMessage(role="user", content="x")
    task_input = GenerateInput(messages=(turn,) * limits.CHAT_MESSAGES_MAX, stop=("x",) * limits.STOP_STRINGS_MAX)
    assert decode_input_untrusted(encode_input(task_input)) == task_input


def test_output_is_refused_when_it_has_too_many_tokens() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_output_untrusted(b"\x82\xa4text\xa0\xa6tokens\xdc\x01\x01" + b"\x01" * 257)
    with pytest.raises(LocalProtocolError):
        encode_output(GenerateOutput(tokens=(1,) * 257, text=""))
