"""What a user asks of the market, what happens meanwhile, and how it ended.

The API speaks these; the requester carries an order out. Nothing here goes over the wire.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from node.errors import NodeError
from protocol.errors import DeclineCode
from protocol.task import FinishReason, Sampling
from protocol.tasks.registry import ItemOutput, TaskInput
from protocol.units import JobId, MessageId, Microcredits, PeerId

Path = Literal["auto", "fast", "quote"]
"""``fast`` contracts on an advert's standing offer, ``quote`` asks first, ``auto`` decides by the advert's age."""


DEADLINE_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One job to be bought, or run here when this node has the model and ``where`` allows it."""

    model: str
    """A model's name or the hex of its id (8 or more digits)."""
    task_input: TaskInput
    sampling: Sampling
    tokens_out_max: int
    where: Literal["any", "local", "remote"] | PeerId = "any"
    path: Path = "auto"
    price_max_microcredits: Microcredits | None = None
    """For the whole job; None takes the configured bound."""
    deadline_s: float = DEADLINE_S
    job_id: JobId | None = None
    """None: the market draws one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The candidates are known and will be tried in this order."""

    job_id: JobId
    peer_ids: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    peer_id: PeerId
    price_max_microcredits: Microcredits
    queue_ms: int


PeerFault = Literal["unreachable", "silent", "broke_protocol", "failed", "spend_limit", "banned"]
"""How a provider failed us without declining; ``spend_limit``: more with it than we put at risk; ``banned``: our
owner did so in the middle of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """This candidate did not take it, or failed; the next one goes on from the tokens that are there."""

    peer_id: PeerId
    code: DeclineCode | PeerFault
    message: str
    retry_after_s: float = 0.0
    """When it asks to be tried again, if it does."""
    tokens_max: int | None = None
    """The longest answer that it would take on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracted:
    """Two signatures stand; ``contract_id`` is None for a job on this node's own devices."""

    peer_id: PeerId
    contract_id: MessageId | None
    price_max_microcredits: Microcredits
    tokens_in: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """More of the answer: tokens and the text that became certain, or a result of another task."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    result: ItemOutput | None = None

    @property
    def units(self) -> int:
        return len(self.tokens) if self.result is None else self.result.units


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The job is complete, the receipt (if any) verified and stored. Always the last event.

    ``receipt_id`` is None for a job of our own, and where the provider died between answer and receipt.
    """

    job_id: JobId
    peer_id: PeerId
    contract_id: MessageId | None
    receipt_id: MessageId | None
    finish: FinishReason
    tokens_in: int
    tokens_out: int
    cost_microcredits: Microcredits
    """Over all contracts of the job."""
    first_token_ms: int
    """From the order on, looking for a provider included."""
    duration_ms: int
    continued: tuple[MessageId, ...] = ()
    """Contracts that ended before the answer did, oldest first; ``contract_id`` is the last one's."""


JobEvent: TypeAlias = Asking | Quoted | PassedOver | Contracted | Output | Finished


class OrderError(NodeError):
    """The order could not be filled; ``code`` is a fixed word for machines."""

    code = "failed"


class UnknownModelError(OrderError):
    """Nobody known has this model; ``available`` lists the names that the network has."""

    code = "model_not_found"

    def __init__(self, model: str, available: tuple[str, ...], *, here: bool = False) -> None:
        """``here``: only this node was asked for it."""
        has = ", ".join(available) if available else "nothing yet"
        whole = f"no peer has a model called {model!r}; the network has: {has}"
        own = f"this node has no model called {model!r}, it has: {has}; the network was not asked"
        super().__init__(own if here else whole)
        self.model = model
        self.available = available


class WrongTaskError(OrderError):
    """The model is there, and does something else."""

    code = "task_not_served"

    def __init__(self, model: str, *, wanted: str, offered: tuple[str, ...]) -> None:
        super().__init__(f"model {model!r} is offered for {', '.join(offered)}, not for {wanted}")


class NobodyWillingError(OrderError):
    """Candidates were found and none took the job; ``refusals`` has each one's reason."""

    code = "no_capacity"

    def __init__(self, refusals: tuple[PassedOver, ...]) -> None:
        super().__init__(f"none of {len(refusals)} peers took the job")
        self.refusals = refusals


class UnfitInputError(OrderError):
    """The input is at fault: another provider of the model, or another time, would not help."""


class PromptTooLongError(UnfitInputError):
    """The prompt and the answer do not fit the model's context; the message has the limit."""

    code = "context_length_exceeded"


class InputRefusedError(UnfitInputError):
    """The model cannot take this input; the message has the provider's reason."""

    code = "input_refused"


class JobFailedError(OrderError):
    """Every provider failed in mid-answer and nobody is left to go on. ``code`` is a fixed word."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class DeadlineError(OrderError):
    """The order's deadline passed before an answer was complete."""

    code = "deadline"


class OrderCancelledError(OrderError):
    """Somebody else than the order's reader ended it, through the control API."""

    code = "cancelled"
