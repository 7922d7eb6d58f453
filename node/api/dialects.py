"""OpenAI's two ways to ask a model and to be answered: a chat, and a raw prompt to go on with.

What differs between them stands here; how an order runs and is told is ``relay.py``'s.
"""

from typing import Final, Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from node.api.bodies import (
    AnswerMessage,
    ChatRequest,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    SoukBlock,
    TextAnswer,
    TextChoice,
    TextRequest,
    Usage,
    read_chat,
    read_text,
)
from protocol.task import FinishReason


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every piece of one answer repeats."""

    request_id: str
    model: str
    created: int
    headers: dict[str, str]
    """Known before the order; more are added as the job goes on."""


class Dialect(Protocol):
    """How one endpoint is asked and answers."""

    @property
    def input_field(self) -> Literal["messages", "prompt"]:
        """The field that is at fault when the input is too long."""

    def read(self, data: bytes) -> tuple[ChatRequest | TextRequest, tuple[str, ...]]:
        """Return the request and its fields that change nothing. Raises: ApiError."""

    def whole(
        self, head: Head, text: str, finish: FinishReason, *, usage: Usage, souk: SoukBlock
    ) -> msgspec.Struct:
        """Return a whole answer."""

    def piece(
        self,
        head: Head,
        text: str,
        finish: FinishReason | None,
        *,
        is_first: bool,
        souk: SoukBlock | UnsetType,
    ) -> msgspec.Struct:
        """Return one event of a streamed answer."""

    def usage(self, head: Head, usage: Usage, souk: SoukBlock) -> msgspec.Struct:
        """Return the event that tells the usage: it has no choices."""


class ChatDialect:
    """``/v1/chat/completions``."""

    input_field: Final = "messages"

    def read(self, data: bytes) -> tuple[ChatRequest, tuple[str, ...]]:
        return read_chat(data)

    def whole(self, head: Head, text: str, finish: FinishReason, *, usage: Usage, souk: SoukBlock) -> Completion:
        choice = Choice(message=AnswerMessage(content=text), finish_reason=finish)
        return Completion(
            id=self._id(head), created=head.created, model=head.model, choices=(choice,), usage=usage, souk=souk
        )

    def piece(
        self,
        head: Head,
        text: str,
        finish: FinishReason | None,
        *,
        is_first: bool,
        souk: SoukBlock | UnsetType,
    ) -> Chunk:
        delta = Delta(role="assistant" if is_first else UNSET, content=text or UNSET)
        choice = ChunkChoice(delta=delta, finish_reason=finish)
        return Chunk(id=self._id(head), created=head.created, model=head.model, choices=(choice,), souk=souk)

    def usage(self, head: Head, usage: Usage, souk: SoukBlock) -> Chunk:
        return Chunk(id=self._id(head), created=head.created, model=head.model, choices=(), usage=usage, souk=souk)

    @staticmethod
    def _id(head: Head) -> str:
        return f"chatcmpl-{head.request_id}"


class TextDialect:
    """``/v1/completions``."""

    input_field: Final = "prompt"

    def read(self, data: bytes) -> tuple[TextRequest, tuple[str, ...]]:
        return read_text(data)

    def whole(self, head: Head, text: str, finish: FinishReason, *, usage: Usage, souk: SoukBlock) -> TextAnswer:
        return self._answer(head, TextChoice(text=text, finish_reason=finish), usage=usage, souk=souk)

    def piece(
        self,
        head: Head,
        text: str,
        finish: FinishReason | None,
        *,
        is_first: bool,
        souk: SoukBlock | UnsetType,
    ) -> TextAnswer:
        return self._answer(head, TextChoice(text=text, finish_reason=finish), souk=souk)

    def usage(self, head: Head, usage: Usage, souk: SoukBlock) -> TextAnswer:
        return self._answer(head, usage=usage, souk=souk)

    @staticmethod
    def _answer(
        head: Head, *choices: TextChoice, souk: SoukBlock | UnsetType, usage: Usage | UnsetType = UNSET
    ) -> TextAnswer:
        return TextAnswer(
            id=f"cmpl-{head.request_id}",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
            souk=souk,
        )
