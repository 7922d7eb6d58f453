"""OpenAI's bodies as types: what is read from a client and what is written to it (ux.md, 4.6 and 6).

Unknown fields are let through, since clients send many. Bounds that are OpenAI's own stand on the fields; those
of the protocol are checked where the order is made (``node/api/orders.py``).
"""

import re
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from node.api.errors import ApiError, bad_request
from node.market.order import Path
from protocol import limits
from protocol.task import FinishReason

UNUSED_FIELDS: Final = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "service_tier",
        "store",
        "suffix",
        "tool_choice",
        "tools",
        "top_logprobs",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Fields of OpenAI's that change nothing here; a request that brings one is told so."""

R = TypeVar("R", bound="GenerationRequest")

TokenCount = Annotated[int, Meta(ge=1, le=limits.TOKENS_MAX)]
PromptText = Annotated[str, Meta(min_length=1)]
StopString = Annotated[str, Meta(min_length=1, max_length=limits.STOP_BYTES_MAX)]


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ChatTurn(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    """``developer`` is OpenAI's newer word for ``system``."""
    content: str | list[TextPart]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class SoukOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own part of a request: a misspelt bound on the price must not be let through."""

    on: str = "any"
    """``any``, ``local``, ``remote`` or a peer id."""
    max_price: Annotated[int, Meta(ge=0, le=limits.MICROCREDITS_MAX)] | None = None
    """µc for the whole job."""
    deadline_s: Annotated[float, Meta(gt=0, le=limits.JOB_LIFE_MS_MAX / 1000)] | None = None
    path: Path = "auto"


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and raw prompts have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=limits.TEXT_BYTES_MAX)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=limits.STOP_STRINGS_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None
    souk: SoukOptions = SoukOptions()


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: Annotated[list[ChatTurn], Meta(min_length=1, max_length=limits.CHAT_MESSAGES_MAX)]
    max_completion_tokens: TokenCount | None = None


class TextRequest(GenerationRequest, frozen=True, kw_only=True):
    """A raw prompt: the model goes on with it as it stands, without a chat template."""

    prompt: PromptText | Annotated[list[PromptText], Meta(min_length=1, max_length=1)]


class SoukBlock(msgspec.Struct, frozen=True, kw_only=True):
    """What the market adds to an answer."""

    job_id: str
    peer: str
    contract_id: str | None
    receipt_id: str | None
    cost_microcredits: int
    first_token_ms: int
    duration_ms: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    souk: SoukBlock


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: Usage | UnsetType = UNSET
    souk: SoukBlock | UnsetType = UNSET


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class TextAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to a raw prompt, or one event of it: OpenAI has one form for both."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage | UnsetType = UNSET
    souk: SoukBlock | UnsetType = UNSET


class ModelSouk(msgspec.Struct, frozen=True, kw_only=True):
    model_id: str
    local: bool
    peers: int
    context_tokens: int
    price_in: int
    price_out: int


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    """OpenAI's clients demand the field; a manifest has no date."""
    owned_by: str = "souk"
    souk: ModelSouk


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[ModelEntry, ...]


_chat = msgspec.json.Decoder(ChatRequest)
_text = msgspec.json.Decoder(TextRequest)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_chat(data: bytes) -> tuple[ChatRequest, tuple[str, ...]]:
    """Return the request and the names of its fields that will change nothing.

    Raises:
        ApiError: 400, with the field at fault as ``param``.
    """
    return _read(_chat, data)


def read_text(data: bytes) -> tuple[TextRequest, tuple[str, ...]]:
    """As ``read_chat``, for a raw prompt."""
    return _read(_text, data)


def _read(decoder: msgspec.json.Decoder[R], data: bytes) -> tuple[R, tuple[str, ...]]:
    try:
        request = decoder.decode(data)
        given = _fields.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise to_bad_request(exc) from exc
    ignored = sorted(name for name in UNUSED_FIELDS & given.keys() if bytes(given[name]) != b"null")
    return request, tuple(ignored)


def to_bad_request(exc: Exception) -> ApiError:
    """Return the 400 for a body that does not fit its type: msgspec names the path, OpenAI calls it ``param``."""
    if not isinstance(exc, msgspec.ValidationError):
        return bad_request(f"the body is not JSON: {exc}", param=None, code="invalid_json")
    text = str(exc)
    missing = re.search(r"missing required field `(\w+)`", text)
    path = re.search(r" - at `\$\.?([^`]*)`", text)
    names = [match[1] for match in (path, missing) if match is not None and match[1]]
    return bad_request(text.replace("`", ""), param=".".join(names) or None)
