"""One order on its way through the market: what is to be bought, at which terms, and what has come so far.

Values only; ``requester.py`` makes them and ``requester_job.py`` carries one attempt out.
"""

from dataclasses import dataclass, field
from typing import Final

import trio
from msgspec.structs import replace

from node.market.order import Order, Output, PeerFault, PromptTooLongError
from node.metrics import TokenGaps
from protocol import limits
from protocol.errors import DeclineCode, LocalProtocolError, RemoteProtocolError
from protocol.fields import Dtype, Task
from protocol.offer import Decline
from protocol.price import Prices
from protocol.task import FinishReason, GenerateInput, GenerateOutput, pack_tokens
from protocol.tasks.forward import ForwardOutput
from protocol.tasks.registry import ItemOutput, TaskInput, TaskOutput, encode_task_input, task_of
from protocol.tasks.vad import VadOutput
from protocol.units import MS_PER_S, JobId, MessageId, Microcredits

# What a chat template may add to the text of a message, and to a conversation (a default system prompt).
TEMPLATE_TOKENS_PER_MESSAGE: Final = 16
TEMPLATE_TOKENS: Final = 64


class AttemptFailedError(Exception):
    """This provider did not answer the order. Nothing is wrong with us."""

    def __init__(
        self,
        code: DeclineCode | PeerFault,
        message: str,
        *,
        wait_s: float = 0.0,
        retry_after_s: float = 0.0,
        tokens_max: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s
        """An offer of ours may still be open for so long: no second contract before that."""
        self.retry_after_s = retry_after_s
        """The provider's own word on when to come back."""
        self.tokens_max = tokens_max
        """The longest answer that it would take on."""

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
        return cls(decline.code, message, retry_after_s=retry_ms / MS_PER_S, tokens_max=decline.tokens_max)


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
    """Of an answer that is text."""
    units: int = 0
    """All that was delivered and is kept."""
    unseen: list[ItemOutput] = field(default_factory=list)
    """Of an answer that is worth something only as a whole: shown once it is there."""
    finish: FinishReason | None = None
    tokens_in: int = 0
    """Of the first contract: later ones count the held tokens, too."""
    spent: int = 0
    first_token_at: float | None = None
    contract_ids: list[MessageId] = field(default_factory=list)
    gaps: TokenGaps | None = None
    """Told of each piece of text; another one for each provider, whose model's name it counts under."""
    dtype: Dtype | None = None
    """Whoever goes on has to compute in the same type."""

    def take(self, output: TaskOutput) -> tuple[Output, ...]:
        """Note one output frame and return what the order's reader may see now."""
        self.units += output.units
        self.finish = output.finish
        match output:
            case GenerateOutput():
                self.tokens += output.tokens
                if self.gaps is not None:
                    self.gaps.note(len(output.tokens))
                return (Output(tokens=output.tokens, text=output.text),)
            case VadOutput() | ForwardOutput():
                self.unseen.append(output)
                if output.finish is None:
                    return ()
                whole, self.unseen = self.unseen, []
                return tuple(Output(result=result) for result in whole)
            case _:
                return (Output(result=output),)

    def cut(self) -> None:
        """Forget what nobody can go on from: its provider is lost."""
        self.units -= sum(output.units for output in self.unseen)
        self.unseen.clear()

    def rest_of(self, task_input: TaskInput) -> TaskInput:
        """Return the input of what is still to be delivered."""
        if isinstance(task_input, GenerateInput):
            return replace(task_input, held=pack_tokens(self.tokens))
        return (task_input.after(self.units) if self.units else None) or task_input


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

    @property
    def task(self) -> Task:
        return task_of(self.order.task_input)


def make_purchase(
    order: Order, job_id: JobId, answer_log: AnswerLog, *, price_max: int, ends_at: float
) -> Purchase:
    """Return what is still to be bought for ``price_max`` in all. Raises: PromptTooLongError."""
    rest = answer_log.rest_of(order.task_input)
    try:
        data = encode_task_input(rest)
    except LocalProtocolError as exc:
        raise PromptTooLongError(str(exc)) from exc
    if isinstance(rest, GenerateInput):
        # No tokeniser makes more tokens than there are bytes.
        tokens_in_max = len(data) + TEMPLATE_TOKENS + TEMPLATE_TOKENS_PER_MESSAGE * len(rest.messages)
    else:
        tokens_in_max = rest.units_in_max
    return Purchase(
        order=order,
        job_id=job_id,
        log=answer_log,
        data=data,
        tokens_held=rest.units_held if isinstance(rest, GenerateInput) else 0,
        tokens_in_max=min(tokens_in_max, limits.TOKENS_MAX),
        tokens_out_max=order.tokens_out_max - answer_log.units,
        price_max=Microcredits(max(price_max - answer_log.spent, 0)),
        ends_at=ends_at,
    )


def failed_by(exc: Exception, what: str, *, wait_s: float = 0.0) -> AttemptFailedError:
    """Return how an attempt ends by a fault of the provider's, or of the way to it."""
    match exc:
        case RemoteProtocolError():
            return AttemptFailedError("broke_protocol", f"{what}: {exc}", wait_s=wait_s)
        case trio.TooSlowError():
            return AttemptFailedError("silent", f"{what} in time", wait_s=wait_s)
        case _:
            return AttemptFailedError("unreachable", f"{what}: {exc}", wait_s=wait_s)
