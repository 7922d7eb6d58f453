"""One order from the market to its client, as one JSON answer or as a stream.

Both tellers hear the same events. The stream holds its HTTP status back until a contract or an error is there,
so that an order which nobody takes is a 503 and not a broken 200.
"""

from collections.abc import Callable
from typing import Final, Protocol, assert_never

import msgspec
import trio
from starlette.types import Receive

from node.api.bodies import SoukBlock, Usage
from node.api.dialects import Dialect, Head
from node.api.errors import to_api_error, unfit_input
from node.api.intake import run_unless_gone
from node.api.services import Market
from node.api.sse import DONE, KEEP_ALIVE, KEEP_ALIVE_S, EventStream, event_bytes
from node.errors import NodeError
from node.market.order import (
    Asking,
    Contracted,
    Finished,
    JobEvent,
    Order,
    Output,
    PassedOver,
    Quoted,
    UnfitInputError,
)
from protocol.identity import peer_id_to_text
from protocol.task import FinishReason

EVENTS_MAX: Final = 64
"""Between the market and a client: full, the consumer of the job waits, and deadlines go on."""


class AskingPhase(msgspec.Struct, frozen=True, tag_field="phase", tag="asking"):
    peers: int


class QuotedPhase(msgspec.Struct, frozen=True, tag_field="phase", tag="quoted"):
    peer: str
    price_max: int


class PassedOverPhase(msgspec.Struct, frozen=True, tag_field="phase", tag="passed_over"):
    peer: str
    code: str
    message: str


class ContractedPhase(msgspec.Struct, frozen=True, tag_field="phase", tag="contracted"):
    peer: str
    contract_id: str | None
    price_max: int
    tokens_in: int


class Teller(Protocol):
    """Tells a client what happens to its order."""

    async def tell(self, event: JobEvent) -> None: ...

    async def keep_alive(self) -> None:
        """Show that the order is still waited for."""


class WholeAnswer:
    """Collects the answer; ``headers`` and ``body`` are complete after ``Finished``."""

    def __init__(self, dialect: Dialect, head: Head) -> None:
        self.headers = dict(head.headers)
        self.body: msgspec.Struct | None = None
        self._dialect = dialect
        self._head = head
        self._text: list[str] = []

    async def tell(self, event: JobEvent) -> None:
        self.headers |= souk_headers(event)
        if isinstance(event, Output):
            self._text.append(event.text)
        elif isinstance(event, Finished):
            self.body = self._dialect.whole(
                self._head, "".join(self._text), event.finish, usage=_usage(event), souk=souk_block(event)
            )

    async def keep_alive(self) -> None:
        """Nothing can be sent before the status."""


class StreamedAnswer:
    """Writes chunks as they come."""

    def __init__(self, dialect: Dialect, head: Head, stream: EventStream, *, include_usage: bool) -> None:
        self._dialect = dialect
        self._head = head
        self._stream = stream
        self._include_usage = include_usage
        self._headers = dict(head.headers)
        self._has_begun = False

    @property
    def started(self) -> bool:
        """Whether the status is out, so that errors can only follow in the stream."""
        return self._stream.started

    async def tell(self, event: JobEvent) -> None:
        self._headers |= souk_headers(event)
        match event:
            case Asking() | Quoted() | PassedOver():
                await self._stream.comment(_phase(event))
            case Contracted():
                await self._stream.comment(_phase(event))
                await self._start()
            case Output():
                await self._start()
                if event.text:
                    await self._piece(event.text)
            case Finished():
                await self._start()
                await self._finish(event)
            case _:
                assert_never(event)

    async def keep_alive(self) -> None:
        if self.started:
            await self._stream.write(KEEP_ALIVE)

    async def fail(self, error: NodeError) -> None:
        """End a stream that has begun with an error; OpenAI's clients raise it."""
        await self._stream.write(event_bytes(to_api_error(error).answer()))
        await self._stream.end()

    async def end(self) -> None:
        await self._stream.end()

    async def _start(self) -> None:
        if not self._stream.started:
            await self._stream.start(self._headers)

    async def _finish(self, event: Finished) -> None:
        souk = souk_block(event)
        await self._piece("", finish=event.finish, souk=souk)
        if self._include_usage:
            usage = self._dialect.usage(self._head, _usage(event), souk)
            await self._stream.write(event_bytes(usage))
        await self._stream.write(DONE)

    async def _piece(
        self, text: str, *, finish: FinishReason | None = None, souk: SoukBlock | msgspec.UnsetType = msgspec.UNSET
    ) -> None:
        is_first, self._has_begun = not self._has_begun, True
        chunk = self._dialect.piece(self._head, text, finish, is_first=is_first, souk=souk)
        await self._stream.write(event_bytes(chunk))


async def run_order(market: Market, order: Order, teller: Teller, receive: Receive, *, input_field: str) -> None:
    """Have ``order`` carried out and every event told; a client that leaves cancels it at once.

    Raises:
        ApiError: the input is at fault, which came in ``input_field``.
        NodeError: what the market raised.
        ClientGoneError: the client left first.
    """

    async def follow() -> bool:
        return await follow_order(market, order, teller)

    try:
        # The market's promise, seen from our side of the border: without an error, the end was told.
        assert await run_unless_gone(receive, follow)
    except UnfitInputError as exc:
        raise unfit_input(exc, param=input_field) from exc


async def follow_order(market: Market, order: Order, teller: Teller) -> bool:
    """Have ``order`` carried out whoever stays; return whether ``Finished`` was told. Raises: NodeError."""
    sink, events = trio.open_memory_channel[JobEvent](EVENTS_MAX)
    failures: list[NodeError] = []
    finished = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_submit, market, order, sink, failures.append)
        with events:
            while (event := await _next(events, teller)) is not None:
                finished = isinstance(event, Finished)
                await teller.tell(event)
    if failures:
        raise failures[0]
    return finished


async def _next(events: trio.MemoryReceiveChannel[JobEvent], teller: Teller) -> JobEvent | None:
    """Return the next event, or None after the last; a long wait is shown to the client."""
    while True:
        with trio.move_on_after(KEEP_ALIVE_S):
            try:
                return await events.receive()
            except trio.EndOfChannel:
                return None
        await teller.keep_alive()


async def _submit(
    market: Market,
    order: Order,
    sink: trio.MemorySendChannel[JobEvent],
    on_failure: Callable[[NodeError], None],
) -> None:
    # A failure ends the channel and not the nursery: what the job has already said is told first.
    with sink:
        try:
            await market.submit(order, sink)
        except NodeError as exc:
            on_failure(exc)


def souk_headers(event: JobEvent) -> dict[str, str]:
    """Return the headers that the answer gets from this event."""
    match event:
        case Asking():
            return {"x-souk-job-id": event.job_id.hex()}
        case Contracted():
            return {"x-souk-peer": peer_id_to_text(event.peer_id)}
        case Finished():
            headers = {"x-souk-job-id": event.job_id.hex(), "x-souk-peer": peer_id_to_text(event.peer_id)}
            if event.receipt_id is not None:
                headers["x-souk-receipt"] = event.receipt_id.hex()
            return headers
        case _:
            return {}


def _phase(event: Asking | Quoted | PassedOver | Contracted) -> msgspec.Struct:
    match event:
        case Asking():
            return AskingPhase(peers=len(event.peer_ids))
        case Quoted():
            return QuotedPhase(peer=peer_id_to_text(event.peer_id), price_max=event.price_max_microcredits)
        case PassedOver():
            return PassedOverPhase(
                peer=peer_id_to_text(event.peer_id), code=str(event.code), message=event.message
            )
        case Contracted():
            return ContractedPhase(
                peer=peer_id_to_text(event.peer_id),
                contract_id=None if event.contract_id is None else event.contract_id.hex(),
                price_max=event.price_max_microcredits,
                tokens_in=event.tokens_in,
            )


def _usage(event: Finished) -> Usage:
    return Usage(
        prompt_tokens=event.tokens_in,
        completion_tokens=event.tokens_out,
        total_tokens=event.tokens_in + event.tokens_out,
    )


def souk_block(event: Finished) -> SoukBlock:
    """Return what the market adds to an answer."""
    return SoukBlock(
        job_id=event.job_id.hex(),
        peer=peer_id_to_text(event.peer_id),
        contract_id=None if event.contract_id is None else event.contract_id.hex(),
        receipt_id=None if event.receipt_id is None else event.receipt_id.hex(),
        cost_microcredits=event.cost_microcredits,
        first_token_ms=event.first_token_ms,
        duration_ms=event.duration_ms,
    )
