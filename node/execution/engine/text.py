"""Text in and out of a model: chat template, tokens of a prompt, and the answer's text as it becomes certain.

The answer is decoded byte by byte, so that every piece is valid UTF-8 and nothing is decoded twice; text that may
be the start of a stop string waits until it is or is not.
"""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from node.errors import JobRefusedError, ModelError
from node.execution.engine.chat_template import ChatTemplate
from protocol.task import ChatMessage

# A turn ends with one of these in the known chat formats; some models name only the end of text in their
# configuration and would run on into an invented next turn.
_TURN_ENDS: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>")


class TextCodec:
    """One model's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any], template: str | None) -> None:
        # Any: tokenizer_config.json, of which each use checks its type
        self._tokenizer = tokenizer
        self._settings = settings
        self._template = None if template is None else ChatTemplate(template)
        self._bytes_of = _token_bytes(tokenizer)
        # Special tokens have no bytes as output; as input, their names are read.
        names = (token.content.encode() for token in tokenizer.get_added_tokens_decoder().values())
        self._token_bytes_max = max(map(len, (*self._bytes_of, *names)))

    @property
    def vocabulary(self) -> int:
        return len(self._bytes_of)

    @property
    def token_bytes_max(self) -> int:
        """How much text one token can stand for."""
        return self._token_bytes_max

    def stop_tokens(self, configured: frozenset[int]) -> frozenset[int]:
        """Return every token that ends an answer: the configuration's, the tokenizer's and the chat format's."""
        names = [*_TURN_ENDS, _token_name(self._settings.get("eos_token"))]
        found = (self._tokenizer.token_to_id(name) for name in names if name)
        return configured | {token for token in found if token is not None}

    def encode(self, messages: Sequence[ChatMessage], prompt: str) -> list[int]:
        """Return the tokens of a conversation, or of a raw ``prompt`` where there is none.

        Raises:
            JobRefusedError: ``input``: the template refuses the conversation, or nothing is left of it.
        """
        if messages:
            # The template writes its own special tokens.
            tokens = self._tokenizer.encode(self._render(messages), add_special_tokens=False).ids
        else:
            tokens = self._tokenizer.encode(prompt, add_special_tokens=True).ids
        if not tokens:
            raise JobRefusedError("expected a prompt of at least one token, got none", code="input")
        ids: list[int] = tokens
        return ids

    def stream(self, stop: Sequence[str]) -> "TextStream":
        """Return a decoder for one answer."""
        return TextStream(self._bytes_of, stop)

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        if self._template is None:
            raise JobRefusedError("this model has no chat template: send a prompt, not messages", code="input")
        return self._template.render(
            messages=[{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            bos_token=_token_name(self._settings.get("bos_token")) or "",
            eos_token=_token_name(self._settings.get("eos_token")) or "",
        )


class TextStream:
    """Turns one answer's tokens into text."""

    def __init__(self, bytes_of: Sequence[bytes], stop: Sequence[str]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = StopFilter(stop)

    @property
    def stopped(self) -> bool:
        """A stop string was found: nothing more comes."""
        return self._stop.found

    def push(self, token: int) -> str:
        """Return the text that became certain with ``token``."""
        data = self._bytes_of[token] if token < len(self._bytes_of) else b""
        return self._stop.push(self._decoder.decode(data))

    def end(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        return self._stop.push(self._decoder.decode(b"", final=True)) + self._stop.end()


class StopFilter:
    """Passes text on up to the first stop string, and holds back what may be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Return the text that is certain not to belong to a stop string."""
        if self.found:
            return ""
        held = self._held + text
        starts = [at for stop in self._stop if (at := held.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return held[: min(starts)]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        cut = len(held) - keep
        self._held = held[cut:]
        return held[:cut]

    def end(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def load_codec(folder: Path) -> TextCodec:
    """Read a model's tokenizer and template from its folder.

    Raises:
        ModelError: the tokenizer is of a kind whose tokens have no bytes of their own.
    """
    settings: dict[str, Any] = {}  # Any: as TextCodec says
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_bytes())
    template = folder / "chat_template.jinja"
    if template.is_file():
        return TextCodec(load_tokenizer(folder), settings, template.read_text(encoding="utf-8"))
    return TextCodec(load_tokenizer(folder), settings, _template_in(settings.get("chat_template")))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a model's tokenizer as it is used here: it neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A file may ask for cut or padded inputs: both would change what was paid for.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template_in(value: object) -> str | None:
    if isinstance(value, list):
        named = {item["name"]: item["template"] for item in value}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _token_name(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` begin ``stop``, without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of every token; special ones have none."""
    state = b"null" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
    kinds = _decoder_kinds(json.loads(state))
    if "ByteLevel" in kinds:
        to_bytes = _byte_level
    elif "ByteFallback" in kinds:
        to_bytes = _byte_fallback
    else:
        raise ModelError(
            f"tokenizer.json: expected a decoder ByteLevel or ByteFallback, got {', '.join(kinds) or 'none'}"
        )
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index not in added:
            table[index] = to_bytes(token)
        elif not added[index].special:
            table[index] = token.encode()
    return table


def _decoder_kinds(state: dict[str, Any] | None) -> list[str]:  # Any: the tokenizer's own JSON
    if state is None:
        return []
    return [state["type"], *(kind for part in state.get("decoders", ()) for kind in _decoder_kinds(part))]


def _byte_table() -> dict[str, int]:
    """Return GPT-2's spelling of bytes as printable characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF: Final = _byte_table()


def _byte_level(token: str) -> bytes:
    return bytes(_BYTE_OF[char] for char in token if char in _BYTE_OF)


def _byte_fallback(token: str) -> bytes:
    """SentencePiece: ``<0xE2>`` is a byte, ``▁`` a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
