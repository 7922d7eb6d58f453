"""One order on its way through the market: what is to be bought, at which terms, and what has come so far.

Values only; ``requester.py`` makes them and ``requester_job.py`` carries one attempt out.
"""

from dataclasses import dataclass, field

import trio

from node.market.order import Order, PeerFault
from protocol import limits
from protocol.errors import DeclineCode, RemoteProtocolError
from protocol.fields import Dtype
from protocol.offer import Decline
from protocol.price import Prices
from protocol.task import FinishReason
from protocol.units import MS_PER_S, JobId, MessageId, Microcredits


class AttemptFailedError(Exception):
    """This provider did not answer the order. Nothing is wrong with us."""

    def __init__(
        self,
        code: DeclineCode | PeerFault,
        message: str,
        *,
        wait_s: float = 0.0,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s
        """An offer of ours may still be open for so long: no second contract before that."""
        self.retry_after_s = retry_after_s
        """The provider's own word on when to come back."""

    @classmethod
    def declined(cls, decline: Decline) -> "AttemptFailedError":
        """Return what a decline says, its counter-offer included."""
        message = decline.message
        if decline.tokens_max is not None:
            message += f" (at most {decline.tokens_max} tokens)"
        if decline.price_min is not None:
            message += f" (from {decline.price_min} µc on)"
        # A stranger's number decides how long we wait: within what a quote may be held.
        retry_ms = min(decline.retry_after_ms or 0, limits.QUOTE_HOLD_MS_MAX)
        return cls(decline.code, message, retry_after_s=retry_ms / MS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a contract will say, from a quote or from an advert's standing offer."""

    answers: MessageId
    dtype: Dtype
    prices: Prices
    price_max: Microcredits
    credit: int
    voucher_window_tokens: int


@dataclass(slots=True, kw_only=True)
class AnswerLog:
    """What one order has got so far, whoever delivered it: the truth from which another provider goes on."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    tokens_in: int = 0
    """Of the first contract: later ones count the held tokens, too."""
    spent: int = 0
    first_token_at: float | None = None
    contract_ids: list[MessageId] = field(default_factory=list)
    dtype: Dtype | None = None
    """Whoever goes on has to compute in the same type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """An order made exact for one attempt."""

    order: Order
    job_id: JobId
    log: AnswerLog
    data: bytes
    """The encoded input, the tokens of the log among it."""
    tokens_held: int
    tokens_in_max: int
    tokens_out_max: int
    price_max: Microcredits
    ends_at: float
    """In trio time."""


def failed_by(exc: Exception, what: str, *, wait_s: float = 0.0) -> AttemptFailedError:
    """Return how an attempt ends by a fault of the provider's, or of the way to it."""
    match exc:
        case RemoteProtocolError():
            return AttemptFailedError("broke_protocol", f"{what}: {exc}", wait_s=wait_s)
        case trio.TooSlowError():
            return AttemptFailedError("silent", f"{what} in time", wait_s=wait_s)
        case _:
            return AttemptFailedError("unreachable", f"{what}: {exc}", wait_s=wait_s)
