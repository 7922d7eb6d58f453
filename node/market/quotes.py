"""Binding quotes from every peer with a model, without buying anything (spec 03, sections 2 to 4).

Each quote holds a place at its provider until it lapses, so nobody is asked for fun: at most ``ASKED_MAX`` peers,
once each. The requester asks for its own quotes itself, one candidate after the other.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from node.config import MarketSection
from node.discovery.directory import Candidate, Directory
from node.errors import LedgerError, StreamLostError, TransportError
from node.market.enquiry import ask
from node.market.order import Order, PassedOver, UnknownModelError, WrongTaskError
from node.market.party import Party
from node.market.purchase import AnswerLog, AttemptFailedError, Purchase, failed_by, make_purchase
from node.market.terms import Deal
from node.net.interface import Network
from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.framing import QUOTE_PROTOCOL
from protocol.price import Prices
from protocol.task import GenerateInput, Sampling
from protocol.tasks.registry import serves
from protocol.units import MS_PER_S, JobId, Microcredits, PeerId

ASKED_MAX: Final = 16
DIAL_WAIT_S: Final = 10.0
LIFE_S: Final = 600.0
"""As long as an order may take unless it says otherwise."""
JOB_ID_BYTES: Final = 16
BYTES_PER_TOKEN: Final = 4
"""A guess: an ask tells the prompt's bytes, and there is no prompt yet. No price rests on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enquiry:
    """What one would buy."""

    model: str
    tokens_in: int
    tokens_out_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A peer's binding terms."""

    peer_id: PeerId
    prices: Prices
    price_max_microcredits: Microcredits
    """For the whole job, if it uses all that was asked for."""
    first_token_ms: int
    memory_bytes: int | None
    """What the job would take of the provider's device."""
    hold_ms: int


QuoteReply: TypeAlias = Offered | PassedOver


class Quotes:
    """Asks around."""

    def __init__(
        self,
        party: Party,
        network: Network,
        directory: Directory,
        *,
        config: MarketSection,
        look_up: Callable[[str], Awaitable[int]],
    ) -> None:
        self._party = party
        self._network = network
        self._directory = directory
        self._config = config
        self._look_up = look_up

    def reconfigure(self, market: MarketSection) -> None:
        """Follow other prices from the next question on."""
        self._config = market

    async def ask(self, wanted: Enquiry | Order) -> list[QuoteReply]:
        """Return every peer's reply: the cheapest offer first, refusals last. An order is asked for as it is.

        Raises: UnknownModelError, WrongTaskError, PromptTooLongError (of an order), LedgerError.
        """
        self._party.ledger.check_writable()
        purchase = self._purchase(wanted)
        replies: list[QuoteReply] = []
        faults: list[LedgerError] = []

        async def put(candidate: Candidate) -> None:
            try:
                replies.append(await self._ask_one(purchase, candidate))
            except LedgerError as exc:
                faults.append(exc)  # raised below, bare: a nursery would wrap it in a group

        candidates = await self._find(purchase)
        async with trio.open_nursery() as nursery:
            for candidate in candidates:
                nursery.start_soon(put, candidate)
        if faults:
            raise faults[0]
        return sorted(replies, key=_rank)

    async def _find(self, purchase: Purchase) -> list[Candidate]:
        model, where = purchase.order.model, purchase.order.where
        found = self._directory.candidates(model, self._party.now_ms())
        if not found:
            await self._look_up(model)
            found = self._directory.candidates(model, self._party.now_ms())
        if not isinstance(where, str):
            found = [it for it in found if it.peer_id == where]
        if not found:
            raise UnknownModelError(model, tuple(self._directory.model_names(self._party.now_ms())))
        able = [it for it in found if serves(it.offer.task, purchase.task)]
        if not able:
            offered = tuple(sorted({it.offer.task for it in found}))
            raise WrongTaskError(model, wanted=purchase.task, offered=offered)
        able.sort(key=lambda it: (it.is_doubted, it.offer.prices.tokens_out, it.peer_id))
        best: dict[PeerId, Candidate] = {}
        for candidate in able:
            best.setdefault(candidate.peer_id, candidate)
        return list(best.values())[:ASKED_MAX]

    def _purchase(self, wanted: Enquiry | Order) -> Purchase:
        job_id, ends_at = JobId(self._party.entropy(JOB_ID_BYTES)), trio.current_time() + LIFE_S
        if isinstance(wanted, Order):
            allowed = wanted.price_max_microcredits
            price_max = self._config.price_max if allowed is None else allowed
            return make_purchase(wanted, job_id, AnswerLog(), price_max=price_max, ends_at=ends_at)
        order = Order(
            model=wanted.model,
            task_input=GenerateInput(prompt="-"),
            sampling=Sampling(),
            tokens_out_max=wanted.tokens_out_max,
        )
        return Purchase(
            order=order,
            job_id=job_id,
            log=AnswerLog(),
            data=bytes(min(wanted.tokens_in * BYTES_PER_TOKEN, limits.INPUT_BYTES_MAX)),
            tokens_held=0,
            tokens_in_max=wanted.tokens_in,
            tokens_out_max=wanted.tokens_out_max,
            price_max=Microcredits(self._config.price_max),
            ends_at=ends_at,
        )

    async def _ask_one(self, purchase: Purchase, candidate: Candidate) -> QuoteReply:
        try:
            return await self._offer_of(purchase, candidate)
        except AttemptFailedError as exc:
            failure = exc
        except TransportError as exc:
            failure = AttemptFailedError("unreachable", str(exc))
        except (RemoteProtocolError, trio.TooSlowError) as exc:
            failure = failed_by(exc, "no quote")
        return PassedOver(
            peer_id=candidate.peer_id,
            code=failure.code,
            message=str(failure),
            retry_after_s=failure.retry_after_s,
        )

    async def _offer_of(self, purchase: Purchase, candidate: Candidate) -> Offered:
        """Raises: AttemptFailedError, TransportError, RemoteProtocolError, TooSlowError, LedgerError."""
        deal, life_ms = Deal(purchase=purchase, candidate=candidate), round(LIFE_S * MS_PER_S)
        with trio.fail_after(DIAL_WAIT_S):
            stream = await self._network.open_stream(candidate.peer_id, QUOTE_PROTOCOL)
        async with stream:
            try:
                quote = await ask(self._party, deal, stream, life_ms=life_ms)
            except StreamLostError as exc:
                raise failed_by(exc, "no quote") from exc
        terms = deal.quoted(quote.message, quote.message_id, life_ms=life_ms)
        return Offered(
            peer_id=candidate.peer_id,
            prices=terms.prices,
            price_max_microcredits=terms.price_max,
            first_token_ms=quote.message.first_token_ms,
            memory_bytes=quote.message.memory_bytes,
            hold_ms=max(quote.message.hold_until_ms - self._party.now_ms(), 0),
        )


def _rank(reply: QuoteReply) -> tuple[bool, int, int, bytes]:
    match reply:
        case Offered():
            return False, reply.price_max_microcredits, reply.first_token_ms, reply.peer_id
        case PassedOver():
            return True, 0, 0, reply.peer_id
