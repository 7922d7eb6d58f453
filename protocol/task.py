"""``generate``: the bytes that go in and come out, and how a token is chosen (spec 04, sections 1 to 4).

The other tasks stand in ``protocol/tasks/``. Inputs travel in ``input`` data frames, never in a signed message:
signed messages are kept, and prompts must not be.
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta

from protocol import limits
from protocol.encoding import decode_untrusted, encode
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.schema import Message, to_message_untrusted, to_plain

GENERATE: Final = "generate"
TOKEN_BYTES: Final = 4

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


class ChatMessage(Message, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: Annotated[str, Meta(max_length=limits.INPUT_BYTES_MAX)]


class GenerateInput(Message, frozen=True, kw_only=True):
    """What a ``generate`` job reads: a conversation, or a raw prompt without a chat template."""

    messages: Annotated[tuple[ChatMessage, ...], Meta(max_length=limits.CHAT_MESSAGES_MAX)] = ()
    prompt: Annotated[str, Meta(max_length=limits.INPUT_BYTES_MAX)] = ""
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=limits.STOP_BYTES_MAX)], ...],
        Meta(max_length=limits.STOP_STRINGS_MAX),
    ] = ()
    held: Annotated[bytes, Meta(max_length=limits.HELD_BYTES_MAX)] = b""
    """Answer tokens that another provider has delivered already, 4 bytes each, big-endian: the answer goes on
    after them."""

    def __post_init__(self) -> None:
        if len(self.held) % TOKEN_BYTES:
            raise ValueError(f"held tokens have {TOKEN_BYTES} bytes each, got {len(self.held)} bytes")
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("expected either messages or a prompt, got " + ("both" if self.prompt else "neither"))

    @property
    def units_held(self) -> int:
        """Answer tokens that it brings along."""
        return len(self.held) // TOKEN_BYTES


class Sampling(Message, frozen=True, kw_only=True):
    """How the next token is chosen: integers only, so that both sides sign and repeat the same thing.

    ``temperature_milli`` 0 is greedy. The noise of one position depends on (``seed``, position) alone.
    """

    temperature_milli: Annotated[int, Meta(ge=0, le=10_000)] = 0
    top_p_milli: Annotated[int, Meta(ge=1, le=1_000)] = 1_000
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


class GenerateOutput(Message, frozen=True, kw_only=True):
    """One output frame: token ids as chosen, and the text that became certain with them.

    ``text`` is valid UTF-8 by itself: bytes of an unfinished character wait for the next frame, and so does
    text that may turn out to be the start of a stop string. ``tokens`` may therefore outrun ``text``.
    """

    tokens: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=(1 << 32) - 1)], ...],
        Meta(max_length=limits.OUTPUT_TOKENS_PER_FRAME_MAX),
    ]
    text: Annotated[str, Meta(max_length=limits.DATA_FRAME_BYTES_MAX // 4)]
    finish: FinishReason | None = None

    @property
    def units(self) -> int:
        """What is counted and paid."""
        return len(self.tokens)


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as an input holds them."""
    return b"".join(token.to_bytes(TOKEN_BYTES, "big") for token in tokens)


def unpack_tokens(held: bytes) -> list[int]:
    """Return the token ids in a checked input's ``held``."""
    return [int.from_bytes(held[at : at + TOKEN_BYTES], "big") for at in range(0, len(held), TOKEN_BYTES)]


def encode_input(task_input: GenerateInput) -> bytes:
    """Return the canonical bytes of an input.

    Raises:
        LocalProtocolError: it is longer than ``limits.INPUT_BYTES_MAX``.
    """
    data = encode(to_plain(task_input), entries_max=limits.CHAT_MESSAGES_MAX)
    if len(data) > limits.INPUT_BYTES_MAX:
        raise LocalProtocolError(
            f"the input has {len(data)} bytes, at most {limits.INPUT_BYTES_MAX} travel", reason=Reason.SIZE
        )
    return data


def decode_input_untrusted(data: bytes) -> GenerateInput:
    """Return the input that a peer sent; raises nothing but ``RemoteProtocolError``."""
    if len(data) > limits.INPUT_BYTES_MAX:
        raise RemoteProtocolError(f"an input of {len(data)} bytes", reason=Reason.SIZE)
    return to_message_untrusted(decode_untrusted(data, size_max=limits.INPUT_BYTES_MAX), GenerateInput)


def encode_output(output: GenerateOutput) -> bytes:
    """Return the canonical bytes of one output frame's payload."""
    return encode(to_plain(output))


def decode_output_untrusted(data: bytes) -> GenerateOutput:
    """Return the output that a provider sent; raises nothing but ``RemoteProtocolError``."""
    return to_message_untrusted(decode_untrusted(data, size_max=limits.DATA_FRAME_BYTES_MAX), GenerateOutput)
