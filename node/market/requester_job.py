"""One attempt at one provider, from the requester's side: ask, contract, stream, pay, close (spec 03, 05, 07).

The requester recounts everything and trusts nothing it cannot recompute. Which streams it speaks over is
``attempt.py``'s to say. It ends with a receipt, or in an ``AttemptFailedError`` that says whether the next one may
be asked, and from when.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias

import trio

from node.clock import to_ms
from node.discovery.directory import Candidate
from node.errors import LedgerError, StreamLostError
from node.ledger.entries import ContractRow, Entry
from node.market.enquiry import ask
from node.market.order import Contracted, JobEvent, Quoted
from node.market.party import Line, Party
from node.market.purchase import AttemptFailedError, Purchase, Terms, failed_by
from node.market.terms import Deal
from node.net.interface import Stream
from protocol import limits
from protocol.account import RequesterAccount
from protocol.contract import (
    SALT_BYTES,
    Accept,
    Cancel,
    Contract,
    check_accept_untrusted,
)
from protocol.errors import DeclineCode, Reason, RemoteProtocolError
from protocol.framing import EnvelopeFrame, Frame, OutputFrame, split_input
from protocol.identity import peer_id_to_text
from protocol.offer import Decline, Quote
from protocol.receipt import Receipt
from protocol.resume import Resume, check_provider_untrusted, resume_of_requester
from protocol.signed import Signed, SignedMessage
from protocol.states import RequesterEvent, RequesterState, advance_requester, is_final
from protocol.units import MS_PER_S, JobId, MessageId, Microcredits, ModelId, PeerId, UnixMs
from protocol.voucher import Meter, Voucher

log = logging.getLogger(__name__)

FAREWELL_S: Final = 3.0
"""How long a cancelled job may still take to be told so and paid."""
RECEIPT_SLACK_S: Final = 0.1
"""How long the last voucher waits for the receipt right behind its meter: one write for both and the closing."""
RESUME_WAIT_S: Final = 2.0
"""For one attempt to get back to a provider: within it a killed one is refused and a frozen one is given up."""

CancelCode: TypeAlias = Literal["user", "meter", "deadline", "failed"]
_BREAK_OFF_EVENTS: Final = {
    "user": RequesterEvent.USER_CANCELLED,
    "deadline": RequesterEvent.USER_CANCELLED,
    "meter": RequesterEvent.RULE_BROKEN,
}
_STANDINGS: Final = {"over": "ended it", "unknown": "does not know it"}

Emit: TypeAlias = Callable[[JobEvent], Awaitable[None]]
Leave: TypeAlias = Callable[[MessageId, PeerId], None]


class RequesterJob:
    """Buys one job from one provider. Use it once."""

    def __init__(
        self, party: Party, purchase: Purchase, candidate: Candidate, *, emit: Emit, leave: Leave
    ) -> None:
        """``leave`` is told of a contract whose provider has not heard our last word."""
        self._party = party
        self._purchase = purchase
        self._candidate = candidate
        self._deal = Deal(purchase=purchase, candidate=candidate)
        self._emit = emit
        self._leave = leave
        self.state = RequesterState.IDLE
        self.contract: Signed[Contract] | None = None
        self._quote: Signed[Quote] | None = None
        self._account: RequesterAccount | None = None
        self._untold: tuple[Signed[SignedMessage], Signed[Voucher]] | None = None
        """The last meter and its voucher, until that was sent."""
        self._vouchers: list[Signed[Voucher]] = []
        self._unstored: list[Entry] = []
        """Heard, and written with whatever is signed next: nothing that was said rests on it before."""
        self._heard: Signed[SignedMessage] | None = None
        self._salt = b""
        self.tokens_in = 0
        self._sent_at = 0.0
        self._is_left = False

    @property
    def peer_id(self) -> PeerId:
        return self._candidate.peer_id

    @property
    def model_name(self) -> str:
        return self._candidate.offer.name

    @property
    def job_id(self) -> JobId:
        return self._purchase.job_id

    @property
    def tokens_out(self) -> int:
        return 0 if self._account is None else self._account.delivered.tokens

    @property
    def took_standing_offer(self) -> bool:
        """Whether a contract was offered on the advert's terms, without a quote."""
        return self.contract is not None and self._quote is None

    # Terms.

    async def ask(self, stream: Stream) -> Terms:
        """Return the terms of a binding quote. Raises: AttemptFailedError, LedgerError."""
        self._move(RequesterEvent.ASK_SENT)
        try:
            quote = await ask(self._party, self._deal, stream, life_ms=self._life_ms())
        except (RemoteProtocolError, StreamLostError, trio.TooSlowError) as exc:
            raise failed_by(exc, "no quote") from exc
        terms = self._deal.quoted(quote.message, quote.message_id, life_ms=self._life_ms())
        self._move(RequesterEvent.QUOTE_CAME)
        self._quote = quote
        await self._emit(
            Quoted(
                peer_id=self.peer_id,
                price_max_microcredits=terms.price_max,
                queue_ms=quote.message.first_token_ms,
            )
        )
        return terms

    def standing_terms(self) -> Terms:
        """Return the terms of the advert's standing offer. Raises: AttemptFailedError (it costs too much)."""
        terms = self._deal.standing(life_ms=self._life_ms())
        self._move(RequesterEvent.OFFER_TAKEN)
        return terms

    # The contract.

    async def converse(self, line: Line, begin: Callable[[Line], Awaitable[None]]) -> MessageId:
        """Contract or resume, receive, pay and close; return the receipt's id. The answer goes into the log.

        Cancelling tells the provider so, takes its receipt and pays what it had metered, within ``FAREWELL_S``.

        Raises: AttemptFailedError, LedgerError, StreamLostError, TooSlowError (no sign of life in time).
        """
        try:
            await begin(line)
            return await self._receive(line)
        except RemoteProtocolError as exc:
            wait_s = self.offer_open_s()
            await self._break_off(line, "meter")
            if self._heard is not None:
                # The first message of its place is in the books by now.
                await self._party.ledger.witness(self._heard.envelope, self._party.now_ms())
            raise failed_by(exc, "broke the protocol", wait_s=wait_s) from exc
        except (StreamLostError, trio.TooSlowError, AttemptFailedError):
            raise
        except BaseException:
            # Cancelled, or the reader of the answer is gone: the provider must not work on for nobody.
            with trio.CancelScope(shield=True), trio.move_on_after(FAREWELL_S) as farewell:
                await self._break_off(line, self.why_cancelled())
            if farewell.cancelled_caught:
                self._leave_behind()
            raise

    def why_cancelled(self) -> CancelCode:
        return "deadline" if trio.current_time() >= self._purchase.ends_at else "user"

    async def begin(self, line: Line, *, terms: Terms) -> None:
        """Offer a contract on the first stream and await its acceptance. Raises: as ``converse``."""
        await self._offer(line, terms)
        await self._await_accept(line)

    # A lost stream.

    def lost(self, *, is_silent: bool) -> None:
        """Note that the stream is gone. An offer without an answer stays one."""
        if self.state in (RequesterState.FORMED, RequesterState.STREAMING):
            self._move(RequesterEvent.PROVIDER_SILENT if is_silent else RequesterEvent.STREAM_LOST)

    async def reattach(self, line: Line) -> None:
        """Say where we stand, and bring the provider what it lacks; it does the same."""
        contract_id = self._contract().message_id
        with trio.fail_after(RESUME_WAIT_S):
            await line.tell(self._party.sign(resume_of_requester(contract_id, self._account, is_over=False)))
            answer: Signed[Resume] = await line.hear_untrusted(Resume)
        check_provider_untrusted(answer.message, contract_id, self._account)
        if answer.message.standing != "open":
            raise AttemptFailedError(
                "unreachable",
                "lost the job: it " + _STANDINGS[answer.message.standing],
                wait_s=self.offer_open_s(),
            )
        if self._account is None:
            await self._await_accept(line)
            return
        if self.state is RequesterState.RESUMING:
            self._move(RequesterEvent.STREAM_BACK)
        await self._keep_untold()
        for voucher in self._vouchers:
            if voucher.message.number > answer.message.voucher:
                await line.tell(voucher)

    async def _keep_untold(self) -> None:
        """Write the newest voucher down, if that is not done; it goes out with those that the provider lacks."""
        if self._untold is not None:
            await self._store(*self._untold)
            self._untold = None

    async def give_up(self, code: CancelCode) -> None:
        """End the contract without its provider, which is told when it can be reached again.

        Raises: LedgerError.
        """
        if is_final(self.state) or self.contract is None:
            return
        self.lost(is_silent=False)
        if code != "failed":
            self._move(RequesterEvent.USER_CANCELLED)
        elif self.state is RequesterState.OFFERED:
            self._move(RequesterEvent.ANSWER_OVERDUE)
        else:
            self._move(RequesterEvent.RESUME_FAILED)
        await self._keep_untold()
        await self._store(self._make_cancel(code))
        self._leave_behind()

    async def _offer(self, line: Line, terms: Terms) -> None:
        if self._quote is None and self._candidate.listing.advert.expires_at_ms <= self._party.now_ms():
            # Those before this candidate, or the dial, took longer than its advert lived.
            raise AttemptFailedError(DeclineCode.EXPIRED, "the advert expired before a contract was made")
        self._salt = self._party.entropy(SALT_BYTES)
        contract = self._party.sign(
            self._deal.contract(
                terms,
                requester=self._party.peer_id,
                salt=self._salt,
                now_ms=self._party.now_ms(),
                life_ms=self._life_ms(),
            )
        )
        self.contract = contract
        self._move(RequesterEvent.CONTRACT_SENT)
        await self._store(*([self._quote] if self._quote is not None else []), contract)
        self._sent_at = trio.current_time()
        await line.tell(contract)
        for frame in split_input(self._salt, self._purchase.data):
            await line.send(frame)

    async def _await_accept(self, line: Line) -> None:
        contract = self._contract()
        wait_ms = contract.message.accept_by_ms - contract.message.made_at_ms
        with trio.fail_after(wait_ms / MS_PER_S):
            answer: Signed[SignedMessage] = await line.hear_untrusted(Accept, Decline)
        match answer.message:
            case Decline() as decline if decline.refers_to == contract.message_id:
                self._move(RequesterEvent.DECLINE_CAME)
                await self._store(answer)
                raise AttemptFailedError.declined(decline)
            case Accept() as accept:
                check_accept_untrusted(
                    Signed(accept, answer.envelope),
                    contract_id=contract.message_id,
                    contract=contract.message,
                )
            case _:
                raise RemoteProtocolError("the answer is to another contract", reason=Reason.MEANING)
        self.tokens_in = accept.tokens_in
        answer_log = self._purchase.log
        if not answer_log.contract_ids:
            answer_log.tokens_in = accept.tokens_in
        answer_log.contract_ids.append(contract.message_id)
        answer_log.dtype = contract.message.dtype
        self._account = RequesterAccount(
            contract.message_id, contract.message, salt=self._salt, tokens_in=accept.tokens_in
        )
        self._move(RequesterEvent.ACCEPT_CAME)
        self._unstored.append(self._entry(answer, contract.message_id))
        await self._emit(
            Contracted(
                peer_id=self.peer_id,
                contract_id=contract.message_id,
                price_max_microcredits=Microcredits(contract.message.price_max),
                tokens_in=accept.tokens_in,
            )
        )

    # The answer.

    async def _receive(self, line: Line) -> MessageId:
        """Return the receipt's id once the receipt of a complete answer is checked and closed."""
        signed = await self._until_receipt(line)
        account = self._running_account()
        with self._party.metrics.verifying("receipt"):
            account.receipt_untrusted(signed.message)
        self._move(RequesterEvent.RECEIPT_CAME)
        self._move(RequesterEvent.RECEIPT_HOLDS)
        await self._part(line, signed)
        status = signed.message.status
        if status != "complete" or account.delivered.finish is None:
            raise AttemptFailedError("failed", f"the provider ended the job: {status}")
        return signed.message_id

    async def _until_receipt(self, line: Line) -> Signed[Receipt]:
        """Take in output and pay for it until the receipt comes. Raises: StreamLostError, TooSlowError."""
        while True:
            with trio.fail_at(min(trio.current_time() + limits.SILENCE_MS_MAX / MS_PER_S, self.state_ends_at())):
                frame = await self._receive_or_pay(line)
            match frame:
                case OutputFrame(sequence, data):
                    await self._take_output(sequence, data)
                case EnvelopeFrame():
                    signed: Signed[SignedMessage] = line.read_untrusted(frame, Meter, Receipt)
                    self._heard = signed
                    if isinstance(signed.message, Meter):
                        await self._pay(line, signed.message, signed)
                    elif isinstance(signed.message, Receipt):
                        return Signed(signed.message, signed.envelope)
                case None:
                    raise StreamLostError("the provider ended the stream without a receipt")
                case _:
                    pass

    async def _receive_or_pay(self, line: Line) -> Frame | None:
        """Return the next frame; the last voucher waits a moment for the receipt, but not longer."""
        if self._untold is not None:
            with trio.move_on_after(RECEIPT_SLACK_S):
                return await line.receive_untrusted()
            await self._tell_voucher(line)
        return await line.receive_untrusted()

    def state_ends_at(self) -> float:
        """Return when the present state's own timer fires, in trio time: a little after the provider's."""
        terms = self._contract().message
        by_ms = terms.end_by_ms if self.tokens_out else terms.start_by_ms
        return self._sent_at + (by_ms - terms.made_at_ms) / MS_PER_S + FAREWELL_S

    async def _take_output(self, sequence: int, data: bytes) -> None:
        output = self._running_account().output_untrusted(sequence, data)
        if is_final(self.state):
            return  # cancelled: nobody reads on
        if self.state is RequesterState.FORMED:
            self._move(RequesterEvent.OUTPUT_CAME)
        answer_log = self._purchase.log
        if answer_log.first_token_at is None:
            answer_log.first_token_at = trio.current_time()
        for event in answer_log.take(output):
            await self._emit(event)

    async def _pay(self, line: Line, meter: Meter, signed: Signed[SignedMessage]) -> None:
        account = self._running_account()
        before = account.promised
        voucher = self._party.sign(account.meter_untrusted(meter, self._elapsed_ms()))
        self._purchase.log.spent += account.promised - before
        self._party.metrics.spent.inc(account.promised - before)
        self._untold = signed, voucher
        self._vouchers.append(voucher)
        if not meter.final:
            await self._tell_voucher(line)

    async def _tell_voucher(self, line: Line) -> None:
        """Store and send the newest voucher, unless that is done.

        Shielded: cancelled in the middle, it would leave a gap in the numbers, or half a frame in the stream.
        """
        with trio.CancelScope(shield=True), trio.fail_after(FAREWELL_S):
            if self._untold is not None:
                await self._store(*self._untold)
            await self._tell_untold(line)

    async def _part(self, line: Line, receipt: Signed[Receipt]) -> None:
        """Close, and wait for the provider's end mark: then its books are closed, too.

        Ours are closed first; a provider that cannot hear it now is told another time.
        """
        message = self._running_account().closing(receipt.message_id, receipt.message.status)
        closing = self._party.sign(message)
        await self._store(*(self._untold or ()), receipt, closing)
        was_heard = False
        try:
            with trio.move_on_after(FAREWELL_S):
                await self._tell_untold(line)
                await line.tell(closing)
                await line.finish()
                while await line.receive_untrusted() is not None:
                    pass
                was_heard = True
        except (StreamLostError, RemoteProtocolError) as exc:
            log.info("no farewell", extra={"peer": peer_id_to_text(self.peer_id), "cause": str(exc)})
        finally:
            if not was_heard:
                self._leave_behind()

    async def _tell_untold(self, line: Line) -> None:
        """Send the newest voucher, which is stored, unless that was done."""
        if self._untold is not None:
            await line.tell(self._untold[1])
            self._untold = None

    # Early ends.

    def offer_open_s(self) -> float:
        """Return for how many seconds our offer may still be taken."""
        if self.state is not RequesterState.OFFERED:
            return 0.0
        terms = self._contract().message
        open_s = (terms.accept_by_ms - terms.made_at_ms) / MS_PER_S
        return max(self._sent_at + open_s - trio.current_time(), 0.0)

    async def _break_off(self, line: Line, code: CancelCode) -> None:
        """Cancel a formed contract and, unless the provider cheats, take its receipt and pay what it metered."""
        if is_final(self.state) or self.contract is None:
            return
        self._move(_BREAK_OFF_EVENTS[code])
        try:
            if self._account is None:
                await self._store()
                if code != "meter":
                    # It may have accepted, and would work on for nobody.
                    self._leave_behind()
                return
            cancel = self._make_cancel(code)
            await self._store(*(self._untold or ()), cancel)
            await self._tell_untold(line)
            await line.tell(cancel)
            if code == "meter":
                await line.finish()
                return
            receipt = await self._until_receipt(line)
            with self._party.metrics.verifying("receipt"):
                self._running_account().receipt_untrusted(receipt.message)
            await self._part(line, receipt)
        except (StreamLostError, RemoteProtocolError, LedgerError, trio.TooSlowError) as exc:
            log.info(
                "cancelled without a receipt", extra={"peer": peer_id_to_text(self.peer_id), "cause": str(exc)}
            )
            self._leave_behind()

    def _make_cancel(self, code: CancelCode) -> Signed[Cancel]:
        meters = 0 if self._account is None else self._account.meters
        return self._party.sign(Cancel(contract_id=self._contract().message_id, code=code, meter=meters))

    def _leave_behind(self) -> None:
        """Let the provider be told later, once, whatever goes wrong on the way out."""
        if not self._is_left:
            self._is_left = True
            self._leave(self._contract().message_id, self.peer_id)

    # Small things.

    def _life_ms(self) -> int:
        left_ms = to_ms(self._purchase.ends_at - trio.current_time())
        return min(max(left_ms, 1), limits.JOB_LIFE_MS_MAX)

    def _elapsed_ms(self) -> int:
        return to_ms(trio.current_time() - self._sent_at)

    def _contract(self) -> Signed[Contract]:
        assert self.contract is not None
        return self.contract

    def _running_account(self) -> RequesterAccount:
        assert self._account is not None
        return self._account

    def _move(self, event: RequesterEvent) -> None:
        self.state = advance_requester(self.state, event)
        self._party.journal.bought_moved(self.job_id, self.peer_id, self.state, self._party.now_ms())

    def _entry(self, signed: Signed[SignedMessage], contract_id: MessageId | None) -> Entry:
        return self._party.entry(signed, self.job_id, self.peer_id, contract_id=contract_id)

    async def _store(self, *signed: Signed[SignedMessage]) -> None:
        """Write messages and where the contract stands: before anything is sent."""
        contract = self._contract()
        entries, self._unstored = self._unstored, []
        for it in signed:
            entries.append(self._entry(it, None if isinstance(it.message, Quote) else contract.message_id))
        account = self._account
        row = ContractRow(
            contract_id=contract.message_id,
            job_id=self.job_id,
            role="requester",
            peer_id=self.peer_id,
            model_id=ModelId(contract.message.model_id),
            model=self.model_name,
            state=self.state,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            metered=account.promised if account is not None else Microcredits(0),
            vouchered=account.promised if account is not None else Microcredits(0),
            at_ms=UnixMs(contract.message.made_at_ms),
        )
        await self._party.ledger.post(*entries, row=row)
