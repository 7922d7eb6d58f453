"""The newest jobs of this node and what happened to each, in memory: for `souk job`, `souk why` and the dashboard.

Times, peers, codes, money and counts of tokens; never a prompt or an answer. The signed messages that prove the
same are the ledger's. Orders and sales have a ring each: no customer can push our own orders out of sight.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal, TypeAlias, TypeVar, assert_never

from node.market.order import Asking, Contracted, Finished, JobEvent, Output, PassedOver, Quoted
from node.metrics import JobState, Role
from protocol.states import ProviderState, RequesterState
from protocol.task import GenerateInput
from protocol.tasks.classify import ClassifyInput
from protocol.tasks.embed import EmbedInput
from protocol.tasks.forward import ForwardInput
from protocol.tasks.registry import TaskInput
from protocol.tasks.vad import VadInput
from protocol.units import JobId, MessageId, PeerId, UnixMs

K = TypeVar("K")

JOBS_MAX: Final = 256
"""Of each ring. With full timelines about 5 MiB; usual ones have eight steps."""
STEPS_MAX: Final = 64
STEPS_FIRST: Final = 16
"""Of a timeline that is too long, so many from its start stay; the newest ones follow."""

StepName: TypeAlias = Literal[
    "asking",
    "quoted",
    "passed_over",
    "offered",
    "loading",
    "contracted",
    "queued",
    "continued",
    "first_token",
    "stream_lost",
    "stream_back",
    "paused_unpaid",
    "voucher_came",
    "done",
    "verified",
    "paid",
    "failed",
    "cancelled",
    "expired",
    "unpaid",
    "disputed",
]
Operation: TypeAlias = Literal["chat", "text_completion", "embed", "classify", "vad", "forward"]
OPEN: Final = "asking"
"""An order's state before any contract."""

_BOUGHT: Final[dict[RequesterState, StepName]] = {
    RequesterState.OFFERED: "offered",
    RequesterState.RESUMING: "stream_lost",
    RequesterState.VERIFYING: "done",
    RequesterState.CLOSED: "verified",
}
_SOLD: Final[dict[ProviderState, StepName]] = {
    ProviderState.PAUSED_UNPAID: "paused_unpaid",
    ProviderState.DETACHED: "stream_lost",
    ProviderState.FINISHED: "done",
    ProviderState.CLOSED: "paid",
    ProviderState.CANCELLED: "cancelled",
    ProviderState.EXPIRED: "expired",
    ProviderState.FAILED: "failed",
    ProviderState.UNPAID: "unpaid",
}
# What a sale goes on from, once it runs.
_RUNS_AGAIN: Final[dict[str, StepName]] = {
    ProviderState.FORMED: "first_token",
    ProviderState.PAUSED_UNPAID: "voucher_came",
    ProviderState.DETACHED: "stream_back",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a timeline; what a step does not tell is None."""

    name: StepName
    at_ms: UnixMs
    peer_id: PeerId | None = None
    contract_id: MessageId | None = None
    code: str | None = None
    message: str | None = None
    peers: int | None = None
    price_max_microcredits: int | None = None
    cost_microcredits: int | None = None
    queue_ms: int | None = None
    retry_after_ms: int | None = None
    tokens_out: int | None = None
    """Of the answer so far."""


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One order of ours whatever it took, or one contract that a peer has with us."""

    role: Role
    job_id: JobId
    model: str
    started_ms: UnixMs
    operation: Operation | None = None
    """What kind of work; None where the ledger does not say."""
    state: str = OPEN
    """Of the contract while the job is open; then how the job ended."""
    contract_id: MessageId | None = None
    peer_id: PeerId | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cost_microcredits: int = 0
    energy_millijoules: int | None = None
    """Of our own device; None where it is unknown, or somebody else's."""
    first_token_at_ms: UnixMs | None = None
    ended_ms: UnixMs | None = None
    code: str | None = None
    message: str | None = None
    """Why it failed."""
    steps: list[Step] = field(default_factory=list)
    steps_left_out: int = 0
    """After the first ``STEPS_FIRST``, when there were too many."""
    is_restored: bool = False
    """Read from the ledger after a restart: of its steps only those that signed messages prove."""

    followers: list["Follower"] = field(default_factory=list, repr=False, compare=False)
    """Told after each step, and at the end; the journal sets them."""

    def note(self, step: Step) -> None:
        """Add a step to the timeline, within its bound."""
        self._add(step)
        self._tell(step)

    def tell_steps(self) -> None:
        """Tell whoever follows the journal what happened before the journal had this record."""
        for step in self.steps:
            self._tell(step)

    def _tell(self, step: Step | None) -> None:
        for follower in self.followers:
            follower(self, step)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        if len(self.steps) > STEPS_MAX:
            del self.steps[STEPS_FIRST]
            self.steps_left_out += 1

    def hear(self, event: JobEvent, at_ms: UnixMs) -> None:
        """Take in what the market tells the user of an order."""
        match event:
            case Asking():
                self.note(Step(name="asking", at_ms=at_ms, peers=len(event.peer_ids)))
            case Quoted():
                price_max, queue_ms = event.price_max_microcredits, event.queue_ms
                self.note(
                    Step(
                        name="quoted",
                        at_ms=at_ms,
                        peer_id=event.peer_id,
                        price_max_microcredits=price_max,
                        queue_ms=queue_ms,
                    )
                )
            case PassedOver():
                self.state = OPEN
                self.note(_passed_over(event, at_ms))
            case Contracted():
                self._contracted(event, at_ms)
            case Output():
                self._output(event, at_ms)
            case Finished():
                self.tokens_out, self.cost_microcredits = event.tokens_out, event.cost_microcredits
                # Nobody is paid for a job on our own devices, and there is no receipt to verify.
                name: StepName = "done" if event.contract_id is None else "paid"
                self.note(
                    Step(
                        name=name,
                        at_ms=at_ms,
                        peer_id=event.peer_id,
                        contract_id=event.contract_id,
                        cost_microcredits=event.cost_microcredits,
                        tokens_out=event.tokens_out,
                    )
                )

    def _contracted(self, event: Contracted, at_ms: UnixMs) -> None:
        if not self.tokens_out:
            self.tokens_in = event.tokens_in
        self.peer_id, self.contract_id = event.peer_id, event.contract_id
        self.note(
            Step(
                name="continued" if self.tokens_out else "contracted",
                at_ms=at_ms,
                peer_id=event.peer_id,
                contract_id=event.contract_id,
                price_max_microcredits=event.price_max_microcredits,
                tokens_out=self.tokens_out,
            )
        )
        quote = next((step for step in reversed(self.steps) if step.name == "quoted"), None)
        if quote is not None and quote.peer_id == event.peer_id and quote.queue_ms:
            # The provider's own word; whether it came true is the first token's to tell.
            self.note(Step(name="queued", at_ms=at_ms, peer_id=event.peer_id, queue_ms=quote.queue_ms))

    def _output(self, event: Output, at_ms: UnixMs) -> None:
        self.tokens_out += event.units
        if self.first_token_at_ms is None:
            self.first_token_at_ms = at_ms
            self.note(Step(name="first_token", at_ms=at_ms, peer_id=self.peer_id))

    def bought_moved(self, peer_id: PeerId, state: RequesterState, at_ms: UnixMs) -> None:
        """Take in a new state of the contract that carries an order."""
        was, self.state = self.state, str(state)
        name = _BOUGHT.get(state)
        if state is RequesterState.STREAMING and was == RequesterState.RESUMING:
            name = "stream_back"
        if name is not None:
            self.note(Step(name=name, at_ms=at_ms, peer_id=peer_id, tokens_out=self.tokens_out))

    def sold_moved(self, state: ProviderState, at_ms: UnixMs, *, tokens_out: int) -> None:
        """Take in a new state of a contract that a peer has with us."""
        was, self.state, self.tokens_out = self.state, str(state), tokens_out
        name = _RUNS_AGAIN.get(was) if state is ProviderState.RUNNING else _SOLD.get(state)
        if name == "first_token":
            self.first_token_at_ms = at_ms
        if name is not None:
            self.note(Step(name=name, at_ms=at_ms, peer_id=self.peer_id, tokens_out=tokens_out))

    def end(self, state: JobState, at_ms: UnixMs, *, code: str = "", message: str = "") -> None:
        """Close the record; what is not well gets a last step that says so, unless there is one."""
        self.state, self.ended_ms = state, at_ms
        self.code, self.message = code or None, message or None
        step = None
        if state != "closed" and not (self.steps and self.steps[-1].name == state):
            step = Step(name=state, at_ms=at_ms, code=self.code, message=self.message, tokens_out=self.tokens_out)
            self._add(step)
        self._tell(step)


def operation_of(task_input: TaskInput) -> Operation:
    """Return what kind of work this is an input of."""
    match task_input:
        case GenerateInput():
            return "chat" if task_input.messages else "text_completion"
        case EmbedInput():
            return "embed"
        case ClassifyInput():
            return "classify"
        case VadInput():
            return "vad"
        case ForwardInput():
            return "forward"
        case _:
            assert_never(task_input)


Follower: TypeAlias = Callable[[JobRecord, Step | None], None]
"""Told of a step, or of an end that is none: None. Called where things happen: it may neither block nor fail."""


class Journal:
    """The newest records. One for each daemon; whoever runs a job tells it."""

    def __init__(self) -> None:
        self._orders: dict[JobId, JobRecord] = {}
        self._sales: dict[MessageId, JobRecord] = {}
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> None:
        """Have ``follower`` told of every step of every job from now on."""
        self._followers.append(follower)

    def begin_order(self, record: JobRecord) -> None:
        """Keep the record of a new order, and forget an old one if there is no room."""
        self._orders[record.job_id] = record
        record.followers = self._followers
        _forget(self._orders)

    def begin_sale(self, contract_id: MessageId, record: JobRecord) -> None:
        """Keep the record of a contract that we accepted, and forget an old one if there is no room."""
        self._sales[contract_id] = record
        record.followers = self._followers
        record.tell_steps()
        _forget(self._sales)

    def restore(self, orders: Iterable[JobRecord], sales: Iterable[JobRecord]) -> None:
        """Take over jobs that were over before this daemon's start, the oldest first; nobody is told of them."""
        self._orders |= {record.job_id: record for record in orders}
        self._sales |= {record.contract_id: record for record in sales if record.contract_id is not None}
        _forget(self._orders)
        _forget(self._sales)

    def bought_moved(self, job_id: JobId, peer_id: PeerId, state: RequesterState, at_ms: UnixMs) -> None:
        """Tell an order's record of a new state of its contract, if it is still kept."""
        if (record := self._orders.get(job_id)) is not None:
            record.bought_moved(peer_id, state, at_ms)

    def sold_moved(self, contract_id: MessageId, state: ProviderState, at_ms: UnixMs, *, tokens_out: int) -> None:
        """Tell a sale's record of a new state, if it is still kept."""
        if (record := self._sales.get(contract_id)) is not None:
            record.sold_moved(state, at_ms, tokens_out=tokens_out)

    def records(self) -> list[JobRecord]:
        """Return all records, those of the jobs that began last first."""
        return sorted(self._all(), key=lambda record: record.started_ms, reverse=True)

    def find(self, prefix: str) -> list[JobRecord]:
        """Return the jobs whose own or whose contract's id starts with these hex digits."""
        return [
            record
            for record in self._all()
            if record.job_id.hex().startswith(prefix)
            or (record.contract_id is not None and record.contract_id.hex().startswith(prefix))
        ]

    def _all(self) -> Iterator[JobRecord]:
        return chain(self._orders.values(), self._sales.values())


def _forget(ring: dict[K, JobRecord]) -> None:
    """Drop the oldest job that is over, or the oldest of all, while there are too many."""
    while len(ring) > JOBS_MAX:
        oldest = next(iter(ring))
        del ring[next((key for key, record in ring.items() if record.ended_ms is not None), oldest)]


def _passed_over(event: PassedOver, at_ms: UnixMs) -> Step:
    return Step(
        name="passed_over",
        at_ms=at_ms,
        peer_id=event.peer_id,
        code=str(event.code),
        message=event.message,
        retry_after_ms=round(event.retry_after_s * 1000) or None,
    )
