import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from node.errors import JobRefusedError, ModelError
from node.execution.engine.text import StopFilter, TextCodec, TextStream, load_codec
from protocol.task import ChatMessage
from tests.execution.tiny_model import TEMPLATE, tokenizer, write_tiny_model

BYTES = [bytes([value]) for value in range(256)]


def user(content: str) -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="user", content=content),)


def test_codec_renders_the_models_own_template(codec: TextCodec) -> None:
    tokens = codec.encode((ChatMessage(role="system", content="Be kind."), *user("Hé")), "")
    stream = codec.stream(())
    text = "".join(stream.push(token) for token in tokens) + stream.end()
    # Special tokens have no text.
    assert text == "system\nBe kind.\nuser\nHé\nassistant\n"
    assert tokens.count(257) == 3 and tokens.count(258) == 2


def test_codec_encodes_a_raw_prompt_without_a_template(codec: TextCodec) -> None:
    assert len(codec.encode((), "abc")) == 3


def test_codec_refuses_a_conversation_that_the_template_refuses(codec: TextCodec) -> None:
    with pytest.raises(JobRefusedError, match="chat template refuses") as refused:
        codec.encode((*user("a"), ChatMessage(role="system", content="b")), "")
    assert refused.value.code == "input"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(100000000) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ missing.field.deeper }}",
    ],
)
def test_template_can_change_and_reach_nothing(template: str) -> None:
    with pytest.raises(JobRefusedError) as refused:
        TextCodec(tokenizer(), {}, template).encode(user("a"), "")
    assert refused.value.code == "input"


def test_codec_refuses_messages_when_the_model_has_no_template() -> None:
    with pytest.raises(JobRefusedError, match="no chat template"):
        TextCodec(tokenizer(), {}, None).encode(user("a"), "")


def test_stop_tokens_are_those_of_configuration_tokenizer_and_chat_format() -> None:
    found = TextCodec(tokenizer(), {"eos_token": {"content": "<|endoftext|>"}}, None).stop_tokens(frozenset({7}))
    assert found == {7, 256, 258}


def test_template_is_read_from_its_own_file_or_by_name(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    whole = load_codec(folder).encode(user("a"), "")
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_codec(folder).encode(user("a"), "") == whole
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert len(load_codec(folder).encode(user("a"), "")) == 1


def test_codec_takes_the_bytes_of_sentencepiece_tokens() -> None:
    vocabulary = {"▁Hello": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "<unk>": 4}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<unk>", special=True)])
    stream = TextCodec(made, {}, None).stream(())
    assert [stream.push(token) for token in (0, 4, 1, 2, 3, 99)] == [" Hello", "", "", "é", " ", ""]


def test_codec_refuses_a_tokenizer_whose_tokens_have_no_bytes() -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, "a"))
    with pytest.raises(ModelError, match="ByteLevel or ByteFallback, got none"):
        TextCodec(made, {}, None)


@given(st.text(max_size=40))
def test_stream_gives_the_text_back_and_every_piece_is_valid_by_itself(text: str) -> None:
    stream = TextStream(BYTES, ())
    pieces = [stream.push(byte) for byte in text.encode()] + [stream.end()]
    assert "".join(pieces) == text
    for piece in pieces:
        assert piece.encode().decode() == piece


@given(st.binary(max_size=40))
def test_stream_of_arbitrary_bytes_equals_decoding_with_replacement(data: bytes) -> None:
    stream = TextStream(BYTES, ())
    assert "".join([stream.push(byte) for byte in data] + [stream.end()]) == data.decode("utf-8", "replace")


def cut_at_first_stop(text: str, stop: list[str]) -> str:
    return text[: min((text.find(item) for item in stop if item in text), default=len(text))]


@given(
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=4), st.lists(st.text("abé", max_size=3), max_size=12)
)
def test_filter_cuts_where_the_whole_text_would_be_cut_whatever_the_pieces(
    stop: list[str], pieces: list[str]
) -> None:
    stop_filter, got, seen = StopFilter(stop), "", ""
    for piece in pieces:
        got += stop_filter.push(piece)
        seen += piece
        # Never ahead of what is certain: no later piece can turn what was given into a stop string.
        assert cut_at_first_stop(seen, stop).startswith(got)
        if stop_filter.found:
            break
    got += stop_filter.end()
    assert got == cut_at_first_stop(seen, stop)
    assert stop_filter.found == any(item in seen for item in stop)


def test_filter_holds_back_only_what_may_begin_a_stop_string() -> None:
    stop_filter = StopFilter(["\nUser:"])
    assert stop_filter.push("Hello\nUs") == "Hello"
    assert stop_filter.push("ually") == "\nUsually"
    assert stop_filter.push(" bye\nUser: more") == " bye"
    assert stop_filter.found
    assert stop_filter.push("anything") == ""
    assert stop_filter.end() == ""


def test_stream_stops_inside_a_character_that_spans_tokens() -> None:
    stream = TextStream(BYTES, ["é"])
    assert [stream.push(byte) for byte in "aé!".encode()] == ["a", "", "", ""]
    assert stream.stopped


def test_longest_token_bounds_what_a_context_can_hold(codec: TextCodec) -> None:
    text = "a longer text, with <|im_start|> in it " * 50
    assert len(text.encode()) <= len(codec.encode((), text)) * codec.token_bytes_max
