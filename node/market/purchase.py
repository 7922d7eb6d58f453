"""One order on its way through the market: what is to be bought, at which terms, and what has come so far.

Values only; ``requester.py`` makes them and ``requester_job.py`` carries one attempt out.
"""

from dataclasses import dataclass, field

from node.market.order import Order, PeerFault
from protocol.errors import DeclineCode
from protocol.fields import Dtype
from protocol.price import Prices
from protocol.task import FinishReason
from protocol.units import JobId, MessageId, Microcredits


class AttemptFailedError(Exception):
    """This provider did not answer the order. Nothing is wrong with us."""

    def __init__(self, code: DeclineCode | PeerFault, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s
        """An offer of ours may still be open for so long: no second contract before that."""


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
