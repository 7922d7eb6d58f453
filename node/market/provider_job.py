"""One accepted contract on the provider's side: runs it, meters it, is paid for it (spec 05, 07).

All that happens arrives in one inbox, and one loop answers it, so no two tasks ever change the account. A lost
stream detaches the job; within ``DETACHED_MS_MAX`` the requester may go on over another one.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import trio

from node.clock import to_ms
from node.errors import ExecutionError, LedgerError
from node.execution.interface import Executor, Piece
from node.market.accepted import Accepted, first_row
from node.market.attachment import FAREWELL_S, Attachment
from node.market.inbox import Attached, Event, Heard, Inbox, LineEnded, WorkFailed, take_output
from node.market.party import Line, Party
from node.metrics import JobState
from protocol import limits
from protocol.account import ProviderAccount
from protocol.contract import Cancel, Contract
from protocol.errors import RemoteProtocolError
from protocol.framing import AliveFrame, OutputFrame
from protocol.identity import peer_id_to_text
from protocol.receipt import Closing, Receipt, ReceiptStatus
from protocol.resume import Resume, check_requester_untrusted, resume_of_provider
from protocol.signed import Signed, SignedMessage
from protocol.states import ProviderEvent, ProviderState, advance_provider, is_final
from protocol.units import MS_PER_S, MessageId, UnixMs
from protocol.voucher import Meter, Voucher

log = logging.getLogger(__name__)

CLOSING_SLACK_S: Final = 0.25
"""How long a last voucher waits for the closing right behind it: one write for both. A requester that hears no end
mark brings both again, so a crash in between loses nothing."""
DELIVERING_STATES: Final = (ProviderState.FORMED, ProviderState.RUNNING)
ATTACHED_STATES: Final = (*DELIVERING_STATES, ProviderState.PAUSED_UNPAID)
_JOB_STATES: Final[dict[ProviderState, JobState]] = {
    ProviderState.CLOSED: "closed",
    ProviderState.CANCELLED: "cancelled",
    ProviderState.EXPIRED: "expired",
    ProviderState.UNPAID: "unpaid",
}


def job_state(state: ProviderState) -> JobState:
    """Return how a job ended; left in any other state, our own stop cut it, or a ledger that cannot write."""
    return _JOB_STATES.get(state, "failed")


class ProviderJob:
    """Runs one contract from *accept* to its end. ``unpaid`` is what it leaves open."""

    def __init__(self, party: Party, line: Line, accepted: Accepted) -> None:
        self._party = party
        self._first_line = line
        self._attachment = Attachment(line)
        self._attached: Attached | None = None
        self._contract = accepted.contract
        self._terms = accepted.contract.message
        self._accept = accepted.accept
        self._prompt = accepted.prompt
        self._model = accepted.model
        self._may_owe = accepted.may_owe
        self._gaps = party.metrics.token_gaps("worker", accepted.model.name)
        self.operation = accepted.operation
        self.loading_at_ms = accepted.loading_at_ms
        self._first_row = first_row(accepted.contract, accepted.accept, model=accepted.model.name)
        self._account = ProviderAccount(
            self._contract.message_id, self._terms, salt=accepted.salt, tokens_in=accepted.prompt.tokens_in
        )
        self.state = ProviderState.FORMED
        self.energy_millijoules: int | None = None
        """What the job took of its device; known with the last piece."""
        self._fingerprint = b""
        """Of the whole answer, with its last piece: one that failed or was cancelled has none."""
        self._waiting: list[Piece] = []
        self._receipt: Signed[Receipt] | None = None
        self._work = trio.CancelScope()
        self._heard: list[Signed[SignedMessage]] = []
        self._heard_at = 0.0
        self._cancelled = False
        self._accepted_at = 0.0
        self._paused_at = 0.0
        self._detached_at = 0.0
        self._receipt_at = 0.0
        self._inbox = Inbox(self._terms.tokens_out_max)

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
    def tokens_in(self) -> int:
        return self._prompt.tokens_in

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
        fault: LedgerError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work_through, executor, vacate)
                nursery.start_soon(self._inbox.listen, self._first_line)
                nursery.start_soon(self._show_life)
                try:
                    await self._converse()
                except LedgerError as exc:
                    # Raised below, bare: a nursery would wrap it in a group.
                    fault = exc
                nursery.cancel_scope.cancel()
            if fault is not None:
                raise fault
        finally:
            self._leave_streams()
            self._count()
            extra = {"contract": self._name, "state": str(self.state), "tokens_out": self.tokens_out}
            log.info("contract over", extra={**extra, "peer": peer_id_to_text(self._contract.signer)})

    async def attach(self, line: Line, resume: Resume) -> bool:
        """Go on over another stream of the requester's; see ``Inbox.attach``."""
        return await self._inbox.attach(line, resume)

    async def hand_back(self) -> None:
        """End the job as failed here, so that it goes on elsewhere. Raises: BrokenResourceError (it is over)."""
        await self._inbox.put(WorkFailed(ExecutionError("handed back", code="handed_back")))

    # Tasks that feed the inbox.

    async def _work_through(self, executor: Executor, vacate: Callable[[MessageId], None]) -> None:
        try:
            with self._work:
                await executor.generate(
                    self._prompt,
                    self._terms.sampling,
                    tokens_out_max=self._terms.tokens_out_max,
                    sink=self._inbox.pieces,
                )
        except ExecutionError as exc:
            await self._inbox.put(WorkFailed(exc))
        finally:
            vacate(self._contract.message_id)

    async def _show_life(self) -> None:
        """Say that we are here while a prompt waits or is read: the requester gives up on silence."""
        while not is_final(self.state):
            await trio.sleep(limits.ALIVE_PERIOD_MS / MS_PER_S)
            await self._attachment.send(AliveFrame())

    # The loop.

    async def _converse(self) -> None:
        try:
            await self._attachment.say(self._accept)
            while not is_final(self.state):
                self._notice_loss()
                # The timer bounds the wait alone: nothing that was begun is cut in half.
                with trio.move_on_at(self._state_ends_at()) as timer:
                    event = await self._inbox.receive()
                if timer.cancelled_caught:
                    await self._overdue()
                    continue
                await self._answer(event)
                await self._answer_what_waits()
                # One write for all that was heard, and before anything is said that rests on it.
                await self._store_heard()
                await self._deliver()
            if self.state is not ProviderState.CLOSED:
                await self._farewell()
            await self._attachment.finish()
        except RemoteProtocolError as exc:
            self._party.metrics.peer_rejected(exc.reason)
            log.warning(
                "requester broke the protocol",
                extra={"peer": peer_id_to_text(self._contract.signer), "reason": exc.reason, "cause": str(exc)},
            )
            await self._broken_off()

    def _notice_loss(self) -> None:
        if not self._attachment.is_attached and self.state in ATTACHED_STATES:
            self._move(ProviderEvent.STREAM_LOST)
            self._detached_at = trio.current_time()
            log.info("requester away", extra={"contract": self._name})

    async def _answer_what_waits(self) -> None:
        """Take all that is here already, so that one frame carries every token that is ready."""
        while not is_final(self.state):
            try:
                await self._answer(self._inbox.receive_nowait())
            except trio.WouldBlock:
                return

    def _state_ends_at(self) -> float:
        """Return when the present state's own timer fires, in trio time."""
        match self.state:
            case ProviderState.FORMED:
                return self._on_trio_clock(self._terms.start_by_ms)
            case ProviderState.RUNNING:
                # A stream that was lost and came back may have left it without any output yet.
                return self._on_trio_clock(self._terms.end_by_ms if self.tokens_out else self._terms.start_by_ms)
            case ProviderState.PAUSED_UNPAID:
                return self._paused_at + limits.VOUCHER_WAIT_MS_MAX / MS_PER_S
            case ProviderState.DETACHED:
                by_ms = self._terms.end_by_ms if self.tokens_out else self._terms.start_by_ms
                back_by = self._detached_at + limits.DETACHED_MS_MAX / MS_PER_S
                return min(back_by, self._on_trio_clock(by_ms))
            case _:
                closed_by = self._receipt_at + limits.CLOSING_WAIT_MS_MAX / MS_PER_S
                return min(closed_by, self._heard_at + CLOSING_SLACK_S) if self._heard else closed_by

    def _on_trio_clock(self, wall_ms: int) -> float:
        # From our own acceptance: the requester's clock may be a minute off, the spans that it signed are not.
        return self._accepted_at + (wall_ms - self._terms.made_at_ms) / MS_PER_S

    async def _answer(self, event: Event) -> None:
        match event:
            case Piece():
                self._waiting.append(event)
                self.energy_millijoules, self._fingerprint = event.energy_millijoules, event.fingerprint
                self._gaps.note(len(event.tokens))
            case Heard(line=line) if self._attachment.has_replaced(line):
                pass  # a voucher that comes over both streams would be one too many
            case Heard(signed=signed):
                await self._hear(signed)
            case Attached():
                await self._take_back(event)
            case LineEnded(line=line) if not self._attachment.speaks_over(line):
                pass  # another one has taken its place
            case LineEnded(cause=RemoteProtocolError() as cause):
                raise cause
            case LineEnded(cause=None):
                log.info("requester left early", extra={"contract": self._name})
                await self._broken_off()
            case LineEnded(cause=cause):
                self._attachment.let_go()
            case WorkFailed() if self._receipt is not None:
                pass  # the answer is out: what became of the worker is no matter of this contract
            case WorkFailed(cause):
                log.warning("job failed here", extra={"code": cause.code, "cause": str(cause)})
                await self._end(ProviderEvent.JOB_FAILED, "failed")

    async def _take_back(self, attached: Attached) -> None:
        """Go on over the stream that the requester brought; it says what it lacks."""
        if self._attached is not None:
            self._attached.done.set()
        self._attached, attached.was_taken = attached, True
        check_requester_untrusted(
            attached.resume, self._account, frames_kept_from=self._attachment.frames_kept_from
        )
        # It may have seen the loss before we did.
        self._attachment.let_go()
        self._notice_loss()
        own = resume_of_provider(self._contract.message_id, self._account, is_over=False)
        await self._attachment.move_to(attached.line, self._party.sign(own), attached.resume)
        if self.state is ProviderState.DETACHED:
            self._move(ProviderEvent.STREAM_BACK)
            log.info("requester back", extra={"contract": self._name})
        if attached.resume.standing == "over" and self.state is not ProviderState.FINISHED:
            await self._end(ProviderEvent.CANCEL_CAME, "partial")

    async def _hear(self, signed: Signed[SignedMessage]) -> None:
        try:
            await self._take(signed)
        except RemoteProtocolError:
            # A second message for a place that is taken proves against its signer, once the first is in the books.
            if self._heard:
                await self._store()
            await self._party.ledger.witness(signed.envelope, self._party.now_ms())
            raise

    async def _take(self, signed: Signed[SignedMessage]) -> None:
        match signed.message:
            case Voucher() as voucher:
                before = self._account.vouchered
                self._account.voucher_untrusted(voucher)
                self._attachment.accepted(voucher.meter)
                self._party.metrics.earned.inc(self._account.vouchered - before)
                if self.state is ProviderState.PAUSED_UNPAID and not self._must_pause():
                    self._move(ProviderEvent.VOUCHER_CAME)
                self._heard.append(signed)
                self._heard_at = trio.current_time()
            case Closing() as closing if self._receipt is not None:
                self._account.closing_untrusted(closing, self._receipt.message_id)
                if self.state is ProviderState.FINISHED:
                    self._move(ProviderEvent.CLOSING_CAME)
                self._heard.append(signed)
            case Cancel(contract_id=named) if named == self._contract.message_id and not self._cancelled:
                self._cancelled = True
                self._heard.append(signed)
                if not is_final(self.state):
                    await self._end(ProviderEvent.CANCEL_CAME, "partial")
            case _:
                log.debug("message out of order ignored", extra={"kind": signed.envelope.kind})

    async def _deliver(self) -> None:
        """Send what waits, as far as credit goes; the receipt follows the last piece.

        Nothing is counted that nobody was there to take. Between two frames the requester is heard: its cancel
        must not wait for a whole answer.
        """
        while self._attachment.is_attached and self.state in DELIVERING_STATES:
            if self._account.delivered.finish is not None:
                await self._complete()
            elif self._account.window_is_full():
                meter = self._make_meter(final=False)
                await self._store(meter)
                await self._attachment.say(meter)
            elif self.tokens_out and self._must_pause():
                self._move(ProviderEvent.CREDIT_USED_UP)
                self._paused_at = trio.current_time()
            elif self._waiting:
                await self._send_next()
                await self._answer_what_waits()
                await self._store_heard()
            else:
                return

    async def _send_next(self) -> None:
        if self.state is ProviderState.FORMED:
            self._move(ProviderEvent.OUTPUT_STARTED)
        if not self.tokens_out:
            waited_s = trio.current_time() - self._accepted_at
            self._party.metrics.first_token("worker", self._model.name, waited_s)
        sequence, data = self._account.output(take_output(self._waiting, self._terms.voucher_window_tokens))
        await self._attachment.say(OutputFrame(sequence, data))

    async def _complete(self) -> None:
        meter = self._make_meter(final=True)
        receipt = self._make_receipt("complete")
        self._move(ProviderEvent.RECEIPT_SENT)
        self._receipt_at = trio.current_time()
        await self._store(meter, receipt)
        await self._attachment.say(meter)
        await self._attachment.say(receipt)

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
        """Stop the work and say so with a receipt, after a meter over what was delivered unless we failed."""
        self._stop_working()
        self._move(event)
        own: list[Signed[SignedMessage]] = []
        if self._receipt is None:
            if status == "partial" and self._account.has_unmetered():
                own.append(self._make_meter(final=True))
            own.append(self._make_receipt(status))
        await self._store(*own)
        for signed in own:
            await self._attachment.say(signed)

    async def _broken_off(self) -> None:
        """The requester broke a rule, or left: keep the receipt for whoever asks later."""
        self._attachment.let_go()
        if is_final(self.state):
            await self._store_heard()
        else:
            await self._end(ProviderEvent.RULE_BROKEN, "partial")

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
            case ProviderState.DETACHED:
                await self._end(ProviderEvent.RESUME_OVERDUE, "partial")
            case _:
                if trio.current_time() >= self._receipt_at + limits.CLOSING_WAIT_MS_MAX / MS_PER_S:
                    self._move(ProviderEvent.CLOSING_OVERDUE)
                await self._store()

    async def _farewell(self) -> None:
        """Take in vouchers and the closing that were under way when the contract ended early."""
        if not self._attachment.is_attached:
            return
        with trio.move_on_after(FAREWELL_S):
            while True:
                match await self._inbox.receive():
                    case LineEnded(line=line) if self._attachment.speaks_over(line):
                        return
                    case Attached() as attached:
                        # What the books say is all there is to say, and two may not write them.
                        attached.done.set()
                        return
                    case Heard(line=line, signed=signed) if self._attachment.speaks_over(line):
                        await self._hear(signed)
                        await self._store_heard()
                        if isinstance(signed.message, Closing):
                            return

    # Small things.

    def _must_pause(self) -> bool:
        elapsed_ms = self._elapsed_ms()
        return self._account.must_pause(elapsed_ms) or not self._may_owe(self._account.next_window(elapsed_ms))

    def _elapsed_ms(self) -> int:
        return to_ms(trio.current_time() - self._accepted_at)

    def _leave_streams(self) -> None:
        if self._attached is not None:
            self._attached.done.set()
        self._inbox.close()

    def _count(self) -> None:
        metrics, model = self._party.metrics, self._model.name
        metrics.contract_over("worker", self.state)
        metrics.job_over("worker", job_state(self.state))
        metrics.job_took("worker", model, trio.current_time() - self._accepted_at)
        metrics.tokens("worker", model, tokens_in=self._prompt.tokens_in, tokens_out=self.tokens_out)

    def _move(self, event: ProviderEvent) -> None:
        self.state = advance_provider(self.state, event)
        self._party.journal.sold_moved(
            self._contract.message_id, self.state, self._party.now_ms(), tokens_out=self.tokens_out
        )

    async def _store_heard(self) -> None:
        if self._heard and self.state is not ProviderState.FINISHED:
            await self._store()

    async def _store(self, *own: Signed[SignedMessage]) -> None:
        """Write what was heard, what we are about to say, and where the contract stands."""
        heard, self._heard = self._heard, []
        entries = [
            self._party.entry(
                signed, self._terms.job_id, self._contract.signer, contract_id=self._contract.message_id
            )
            for signed in (*heard, *own)
        ]
        row = replace(
            self._first_row,
            state=self.state,
            tokens_out=self.tokens_out,
            metered=self._account.metered,
            vouchered=self._account.vouchered,
            energy_millijoules=self.energy_millijoules,
        )
        await self._party.ledger.post(*entries, row=row, fingerprint=self._fingerprint)
        self._fingerprint = b""
