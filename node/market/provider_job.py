"""One accepted contract on the provider's side: runs it, meters it, is paid for it (spec 05, 07).

Everything that happens arrives in one inbox, and one loop answers it, so no two tasks ever change the account.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from node.clock import to_ms
from node.errors import ExecutionError, LedgerError, StreamLostError
from node.execution.interface import Executor, Piece, Prompt, ServedModel
from node.ledger.entries import ContractRow
from node.market.party import Line, Party
from node.metrics import JobState
from protocol import limits
from protocol.account import ProviderAccount
from protocol.contract import Accept, Cancel, Contract
from protocol.errors import RemoteProtocolError
from protocol.framing import AliveFrame, EnvelopeFrame, OutputFrame
from protocol.identity import peer_id_to_text
from protocol.receipt import Closing, Receipt, ReceiptStatus
from protocol.signed import Signed, SignedMessage
from protocol.states import ProviderEvent, ProviderState, advance_provider, is_final
from protocol.task import GenerateOutput
from protocol.units import MS_PER_S, JobId, MessageId, Microcredits, ModelId, UnixMs
from protocol.voucher import Meter, Voucher

log = logging.getLogger(__name__)

INBOX_SLACK: Final = 64
"""Room beside the pieces of the answer; a peer that sends more waits."""
FAREWELL_S: Final = 5.0
"""After an early end, how long the last vouchers may still come in."""
_JOB_STATES: Final[dict[ProviderState, JobState]] = {
    ProviderState.CLOSED: "closed",
    ProviderState.CANCELLED: "cancelled",
    ProviderState.EXPIRED: "expired",
    ProviderState.UNPAID: "unpaid",
}


@dataclass(frozen=True, slots=True)
class _Heard:
    """A signed message of the requester."""

    signed: Signed[SignedMessage]


@dataclass(frozen=True, slots=True)
class _LineEnded:
    """The requester finished or the stream broke; ``cause`` is None after an end mark."""

    cause: Exception | None


@dataclass(frozen=True, slots=True)
class _WorkFailed:
    cause: ExecutionError


_Event: TypeAlias = Piece | _Heard | _LineEnded | _WorkFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A contract with both signatures, durable, and its prompt ready in a worker."""

    contract: Signed[Contract]
    accept: Signed[Accept]
    salt: bytes
    prompt: Prompt
    model: ServedModel
    may_owe: Callable[[Microcredits], bool]
    """Whether this contract may come to that sum in all (spec 05, section 7); asked before each window."""


class ProviderJob:
    """Runs one contract from *accept* to its end. ``unpaid`` is what it leaves open."""

    def __init__(self, party: Party, line: Line, accepted: Accepted) -> None:
        self._party = party
        self._line = line
        self._contract = accepted.contract
        self._terms = accepted.contract.message
        self._accept = accepted.accept
        self._prompt = accepted.prompt
        self._model = accepted.model
        self._may_owe = accepted.may_owe
        self._account = ProviderAccount(
            self._contract.message_id, self._terms, salt=accepted.salt, tokens_in=accepted.prompt.tokens_in
        )
        self.state = ProviderState.FORMED
        self._waiting: list[Piece] = []
        self._receipt: Signed[Receipt] | None = None
        self._work = trio.CancelScope()
        self._line_is_lost = False
        self._heard: list[Signed[SignedMessage]] = []
        self._accepted_at = 0.0
        self._paused_at = 0.0
        self._receipt_at = 0.0

    @staticmethod
    def first_row(contract: Signed[Contract], tokens_in: int, *, model: str, now_ms: UnixMs) -> ContractRow:
        """Return the ledger's row of a contract that has just been accepted."""
        return ContractRow(
            contract_id=contract.message_id,
            job_id=JobId(contract.message.job_id),
            role="provider",
            peer_id=contract.signer,
            model_id=ModelId(contract.message.model_id),
            model=model,
            state=ProviderState.FORMED,
            tokens_in=tokens_in,
            tokens_out=0,
            metered=Microcredits(0),
            vouchered=Microcredits(0),
            at_ms=now_ms,
        )

    @property
    def _name(self) -> str:
        return self._contract.message_id.hex()

    @property
    def contract(self) -> Signed[Contract]:
        return self._contract

    @property
    def accepted_at_ms(self) -> int:
        return self._accept.message.accepted_at_ms

    @property
    def model_name(self) -> str:
        return self._model.name

    @property
    def tokens_out(self) -> int:
        return self._account.delivered.tokens

    @property
    def unpaid(self) -> int:
        """What was metered and is not covered; a job that failed on our side leaves no debt."""
        if self.state is ProviderState.FAILED:
            return 0
        return self._account.metered - self._account.vouchered

    @property
    def vouchered(self) -> int:
        """What the requester promised."""
        return self._account.vouchered

    async def run(self, executor: Executor, vacate: Callable[[MessageId], None]) -> None:
        """Converse until the contract is over. ``vacate`` is called when the slot is free again.

        Raises: LedgerError: the next start of the daemon ends the contract in the books.
        """
        self._accepted_at = trio.current_time()
        post, inbox = trio.open_memory_channel[_Event](self._terms.tokens_out_max + INBOX_SLACK)
        fault: LedgerError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work_through, executor, post, vacate)
                nursery.start_soon(self._listen, post)
                nursery.start_soon(self._show_life)
                try:
                    await self._converse(inbox)
                except LedgerError as exc:
                    # Raised below, bare: a nursery would wrap it in a group.
                    fault = exc
                nursery.cancel_scope.cancel()
            if fault is not None:
                raise fault
        finally:
            self._count()
            log.info(
                "contract over",
                extra={
                    "contract": self._name,
                    "peer": peer_id_to_text(self._line.peer_id),
                    "state": str(self.state),
                    "tokens_out": self.tokens_out,
                },
            )

    # Tasks that feed the inbox.

    async def _work_through(
        self, executor: Executor, post: trio.MemorySendChannel[_Event], vacate: Callable[[MessageId], None]
    ) -> None:
        try:
            with self._work:
                await executor.generate(
                    self._prompt,
                    self._terms.sampling,
                    tokens_out_max=self._terms.tokens_out_max,
                    sink=post,
                )
        except ExecutionError as exc:
            await post.send(_WorkFailed(exc))
        finally:
            vacate(self._contract.message_id)

    async def _listen(self, post: trio.MemorySendChannel[_Event]) -> None:
        try:
            while (frame := await self._line.receive_untrusted()) is not None:
                if isinstance(frame, EnvelopeFrame):
                    await post.send(_Heard(self._line.read_untrusted(frame, Voucher, Closing, Cancel)))
        except (StreamLostError, RemoteProtocolError) as exc:
            await post.send(_LineEnded(exc))
        else:
            await post.send(_LineEnded(None))

    async def _show_life(self) -> None:
        """Say that we are here while a prompt waits or is read: the requester gives up on silence."""
        try:
            while not is_final(self.state):
                await trio.sleep(limits.ALIVE_PERIOD_MS / MS_PER_S)
                await self._line.send(AliveFrame())
        except StreamLostError:
            return  # the listener sees the same loss and tells the loop

    # The loop.

    async def _converse(self, inbox: trio.MemoryReceiveChannel[_Event]) -> None:
        try:
            await self._line.tell(self._accept)
            while not is_final(self.state):
                # The timer bounds the wait alone: nothing that was begun is cut in half.
                with trio.move_on_at(self._state_ends_at()) as timer:
                    event = await inbox.receive()
                if timer.cancelled_caught:
                    await self._overdue()
                    continue
                await self._answer(event)
                await self._answer_what_waits(inbox)
                # One write for all that was heard, and before anything is said that rests on it.
                await self._store_heard()
                await self._deliver(inbox)
            if not self._line_is_lost:
                if self.state is not ProviderState.CLOSED:
                    await self._farewell(inbox)
                await self._line.finish()
        except StreamLostError:
            await self._line_lost()
        except RemoteProtocolError as exc:
            self._party.metrics.peer_rejected(exc.reason)
            log.warning(
                "requester broke the protocol",
                extra={"peer": peer_id_to_text(self._line.peer_id), "reason": exc.reason, "cause": str(exc)},
            )
            await self._line_lost()

    async def _answer_what_waits(self, inbox: trio.MemoryReceiveChannel[_Event]) -> None:
        """Take all that is here already, so that one frame carries every token that is ready."""
        while not is_final(self.state):
            try:
                await self._answer(inbox.receive_nowait())
            except trio.WouldBlock:
                return

    def _state_ends_at(self) -> float:
        """Return when the present state's own timer fires, in trio time."""
        match self.state:
            case ProviderState.FORMED:
                return self._on_trio_clock(self._terms.start_by_ms)
            case ProviderState.RUNNING:
                return self._on_trio_clock(self._terms.end_by_ms)
            case ProviderState.PAUSED_UNPAID:
                return self._paused_at + limits.VOUCHER_WAIT_MS_MAX / MS_PER_S
            case _:
                return self._receipt_at + limits.CLOSING_WAIT_MS_MAX / MS_PER_S

    def _on_trio_clock(self, wall_ms: int) -> float:
        # From our own acceptance: the requester's clock may be a minute off, the spans that it signed are not.
        return self._accepted_at + (wall_ms - self._terms.made_at_ms) / MS_PER_S

    async def _answer(self, event: _Event) -> None:
        match event:
            case Piece():
                self._waiting.append(event)
            case _Heard(signed):
                await self._hear(signed)
            case _LineEnded(RemoteProtocolError() as cause):
                raise cause
            case _LineEnded(lost):
                log.info(
                    "requester gone", extra={"contract": self._name, "cause": str(lost or "it finished early")}
                )
                await self._line_lost()
            case _WorkFailed() if self._receipt is not None:
                pass  # the answer is out: what became of the worker is no matter of this contract
            case _WorkFailed(cause):
                log.warning("job failed here", extra={"code": cause.code, "cause": str(cause)})
                await self._end(ProviderEvent.JOB_FAILED, "failed")

    async def _hear(self, signed: Signed[SignedMessage]) -> None:
        try:
            await self._take(signed)
        except RemoteProtocolError:
            # A second message for a place that is taken proves against its signer, once the first is in the books.
            await self._store_heard()
            await self._party.ledger.witness(signed.envelope, self._party.now_ms())
            raise

    async def _take(self, signed: Signed[SignedMessage]) -> None:
        match signed.message:
            case Voucher() as voucher:
                before = self._account.vouchered
                self._account.voucher_untrusted(voucher)
                self._party.metrics.earned.inc(self._account.vouchered - before)
                if self.state is ProviderState.PAUSED_UNPAID and not self._must_pause():
                    self._move(ProviderEvent.VOUCHER_CAME)
                self._heard.append(signed)
            case Closing() as closing if self._receipt is not None:
                self._account.closing_untrusted(closing, self._receipt.message_id)
                if self.state is ProviderState.FINISHED:
                    self._move(ProviderEvent.CLOSING_CAME)
                self._heard.append(signed)
            case Cancel() as cancel if cancel.contract_id == self._contract.message_id:
                self._heard.append(signed)
                await self._end(ProviderEvent.CANCEL_CAME, "partial")
            case _:
                log.debug("message out of order ignored", extra={"kind": signed.envelope.kind})

    async def _deliver(self, inbox: trio.MemoryReceiveChannel[_Event]) -> None:
        """Send what waits, as far as credit goes; the receipt follows the last piece.

        Between two frames the requester is heard: its cancel must not wait for a whole answer.
        """
        while self._waiting and self.state in (ProviderState.FORMED, ProviderState.RUNNING):
            if self.state is ProviderState.FORMED:
                self._move(ProviderEvent.OUTPUT_STARTED)
                waited_s = trio.current_time() - self._accepted_at
                self._party.metrics.first_token("worker", self._model.name, waited_s)
            output = self._next_output()
            sequence, data = self._account.output(output)
            await self._line.send(OutputFrame(sequence, data))
            if output.finish is not None:
                meter = self._make_meter(final=True)
                receipt = self._make_receipt("complete")
                self._move(ProviderEvent.RECEIPT_SENT)
                self._receipt_at = trio.current_time()
                await self._store(meter, receipt)
                await self._line.tell(meter)
                await self._line.tell(receipt)
                return
            if self._account.window_is_full():
                meter = self._make_meter(final=False)
                await self._store(meter)
                await self._line.tell(meter)
            if self._must_pause():
                self._move(ProviderEvent.CREDIT_USED_UP)
                self._paused_at = trio.current_time()
            await self._answer_what_waits(inbox)
            await self._store_heard()

    def _next_output(self) -> GenerateOutput:
        """Join waiting pieces up to the window's end: a frame costs the same whether it has one token or fifty."""
        room = min(self._terms.voucher_window_tokens, limits.OUTPUT_TOKENS_PER_FRAME_MAX)
        tokens: list[int] = []
        text: list[str] = []
        finish = None
        while self._waiting and (not tokens or len(tokens) + len(self._waiting[0].tokens) <= room):
            piece = self._waiting.pop(0)
            tokens += piece.tokens
            text.append(piece.text)
            finish = piece.finish
        return GenerateOutput(tokens=tuple(tokens), text="".join(text), finish=finish)

    def _make_meter(self, *, final: bool) -> Signed[Meter]:
        return self._party.sign(self._account.meter(self._elapsed_ms(), final=final))

    def _make_receipt(self, status: ReceiptStatus) -> Signed[Receipt]:
        started = UnixMs(self._accept.message.accepted_at_ms)
        self._receipt = self._party.sign(
            self._account.receipt(
                status,
                profile=self._model.profile,
                started_ms=started,
                ended_ms=UnixMs(started + self._elapsed_ms()),
            )
        )
        return self._receipt

    # Early ends.

    async def _end(self, event: ProviderEvent, status: ReceiptStatus) -> None:
        """Stop the work and say so with a receipt; nothing is metered any more."""
        self._stop_working()
        self._move(event)
        if self._receipt is not None:
            await self._store()
            return
        receipt = self._make_receipt(status)
        await self._store(receipt)
        await self._line.tell(receipt)

    async def _line_lost(self) -> None:
        """Nobody listens: keep the receipt for whoever asks later."""
        self._line_is_lost = True
        self._stop_working()
        if is_final(self.state):
            await self._store_heard()
            return
        self._move(ProviderEvent.STREAM_LOST)
        if self._receipt is None:
            await self._store(self._make_receipt("partial"))
        else:
            await self._store()

    def _stop_working(self) -> None:
        self._work.cancel()
        self._waiting.clear()

    async def _overdue(self) -> None:
        match self.state:
            case ProviderState.FORMED:
                await self._end(ProviderEvent.START_PASSED, "failed")
            case ProviderState.RUNNING:
                await self._end(ProviderEvent.JOB_FAILED, "failed")
            case ProviderState.PAUSED_UNPAID:
                await self._end(ProviderEvent.VOUCHER_OVERDUE, "partial")
            case _:
                self._move(ProviderEvent.CLOSING_OVERDUE)
                await self._store()

    async def _farewell(self, inbox: trio.MemoryReceiveChannel[_Event]) -> None:
        """Take in vouchers and the closing that were under way when the contract ended early."""
        with trio.move_on_after(FAREWELL_S):
            async for event in inbox:
                if isinstance(event, _LineEnded):
                    return
                if isinstance(event, _Heard) and not isinstance(event.signed.message, Cancel):
                    await self._hear(event.signed)
                    await self._store_heard()

    # Small things.

    def _must_pause(self) -> bool:
        elapsed_ms = self._elapsed_ms()
        return self._account.must_pause(elapsed_ms) or not self._may_owe(self._account.next_window(elapsed_ms))

    def _elapsed_ms(self) -> int:
        return to_ms(trio.current_time() - self._accepted_at)

    def _count(self) -> None:
        metrics, model = self._party.metrics, self._model.name
        metrics.contract_over("worker", self.state)
        # Left in any other state, it was cut by our own stop or by a ledger that cannot write.
        metrics.job_over("worker", _JOB_STATES.get(self.state, "failed"))
        metrics.job_took("worker", model, trio.current_time() - self._accepted_at)
        metrics.tokens("worker", model, tokens_in=self._prompt.tokens_in, tokens_out=self.tokens_out)

    def _move(self, event: ProviderEvent) -> None:
        self.state = advance_provider(self.state, event)

    async def _store_heard(self) -> None:
        if self._heard:
            await self._store()

    async def _store(self, *own: Signed[SignedMessage]) -> None:
        """Write what was heard, what we are about to say, and where the contract stands."""
        heard, self._heard = self._heard, []
        entries = [
            self._party.entry(
                signed, self._terms.job_id, self._line.peer_id, contract_id=self._contract.message_id
            )
            for signed in (*heard, *own)
        ]
        row = ContractRow(
            contract_id=self._contract.message_id,
            job_id=JobId(self._terms.job_id),
            role="provider",
            peer_id=self._line.peer_id,
            model_id=ModelId(self._terms.model_id),
            model=self._model.name,
            state=self.state,
            tokens_in=self._prompt.tokens_in,
            tokens_out=self.tokens_out,
            metered=self._account.metered,
            vouchered=self._account.vouchered,
            at_ms=UnixMs(self._accept.message.accepted_at_ms),
        )
        await self._party.ledger.post(*entries, row=row)
