"""``POST /v1/embeddings``: texts or token ids to vectors, as floats or base64, bought like any other job."""

import base64
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.types import Receive, Scope, Send

from node.api.answers import json_response
from node.api.bodies import SoukBlock, SoukOptions, to_bad_request
from node.api.errors import bad_request
from node.api.intake import Admission, read_body
from node.api.orders import item_order
from node.api.relay import run_order, souk_block, souk_headers
from node.api.services import Services
from node.market.order import Finished, JobEvent, Order, Output
from protocol import limits
from protocol.task import pack_tokens
from protocol.tasks.embed import EmbedInput, EmbedOutput, unpack_vector

InputText = Annotated[str, Meta(min_length=1)]
Token = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
TextTokens = Annotated[list[Token], Meta(min_length=1, max_length=limits.TEXT_TOKENS_MAX)]
UNSUPPORTED_DIMENSIONS: Final = "this model's vectors have one length; leave dimensions out"


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=limits.TEXT_BYTES_MAX)]
    input: (
        InputText
        | Annotated[list[InputText | Token | TextTokens], Meta(min_length=1, max_length=limits.TEXT_TOKENS_MAX)]
    )
    """A text, texts, the token ids of a text, or of several."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    souk: SoukOptions = SoukOptions()


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or the base64 of their IEEE 754 single precision, little-endian."""


class EmbeddingsUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[Embedding, ...]
    model: str
    usage: EmbeddingsUsage
    souk: SoukBlock | UnsetType = UNSET


class EmbeddingsEndpoint:
    """The endpoint as an ASGI app, so that a client who leaves cancels its order."""

    def __init__(self, services: Services, admission: Admission) -> None:
        self._services = services
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission.place():
            try:
                request = msgspec.json.decode(await read_body(receive), type=EmbeddingsRequest)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
                raise to_bad_request(exc) from exc
            teller = _Vectors(request)
            await run_order(self._services.market, _to_order(request), teller, receive, input_field="input")
            assert teller.body is not None
            response = json_response(teller.body, headers=teller.headers)
        await response(scope, receive, send)


class _Vectors:
    """Collects the answer; ``headers`` and ``body`` are complete after ``Finished``."""

    def __init__(self, request: EmbeddingsRequest) -> None:
        self.body: Embeddings | None = None
        self.headers: dict[str, str] = {}
        self._request = request
        self._vectors: list[bytes] = []

    async def tell(self, event: JobEvent) -> None:
        self.headers |= souk_headers(event)
        match event:
            case Output(result=EmbedOutput(vector=vector)):
                self._vectors.append(vector)
            case Finished():
                self.body = Embeddings(
                    data=tuple(
                        Embedding(index=index, embedding=self._shown(vector))
                        for index, vector in enumerate(self._vectors)
                    ),
                    model=self._request.model,
                    usage=EmbeddingsUsage(prompt_tokens=event.tokens_in, total_tokens=event.tokens_in),
                    souk=souk_block(event),
                )
            case _:
                pass

    async def keep_alive(self) -> None:
        """Nothing can be sent before the status."""

    def _shown(self, vector: bytes) -> list[float] | str:
        if self._request.encoding_format == "base64":
            return base64.b64encode(vector).decode()
        return list(unpack_vector(vector))


def _to_order(request: EmbeddingsRequest) -> Order:
    """Raises: ApiError (400)."""
    if request.dimensions is not None:
        raise bad_request(UNSUPPORTED_DIMENSIONS, param="dimensions")
    return item_order(request.model, _task_input(request), request.souk, param="input")


def _task_input(request: EmbeddingsRequest) -> EmbedInput:
    given = request.input
    if isinstance(given, str):
        return EmbedInput(texts=(given,))
    if all(isinstance(item, int) for item in given):
        return EmbedInput(tokens=(pack_tokens([item for item in given if isinstance(item, int)]),))
    texts = [item for item in given if isinstance(item, str)]
    tokens = [pack_tokens(item) for item in given if isinstance(item, list)]
    if len(given) not in (len(texts), len(tokens)) or len(given) > limits.TEXTS_MAX:
        raise bad_request(
            f"expected a text, up to {limits.TEXTS_MAX} texts, or token ids; got a mixture or more", param="input"
        )
    return EmbedInput(texts=tuple(texts), tokens=tuple(tokens))
