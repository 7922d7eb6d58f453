"""The selling side: quotes, admits and accepts; ``provider_job.py`` then runs what was accepted (spec 03, 05)."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import trio

from node.config import MarketSection
from node.errors import (
    ExecutionError,
    KnownContractError,
    LedgerDiskError,
    LedgerError,
    NodeError,
    StreamLostError,
)
from node.execution.interface import Executor, Prompt, ServedModel
from node.ledger.ledger import PROBE_S
from node.market.accepted import Accepted, first_row
from node.market.admission import RETRY_MS, Admission, Hold, Place, Refused
from node.market.fit import check_fits, refused_by
from node.market.input_reader import read_input_untrusted
from node.market.journal import operation_of
from node.market.late import LateContract
from node.market.party import Line, Party
from node.market.presence import run_unless_left
from node.market.provider_job import ProviderJob, job_state
from node.market.sales import sale_record
from node.net.interface import Network, Stream
from protocol import limits
from protocol.contract import Accept, Contract, check_contract_untrusted
from protocol.errors import DeclineCode, Reason, RemoteProtocolError
from protocol.framing import JOB_PROTOCOL, QUOTE_PROTOCOL
from protocol.identity import peer_id_to_text
from protocol.offer import Ask, Decline, Quote
from protocol.price import Prices, not_dearer, price_bound
from protocol.resume import Resume
from protocol.signed import Signed, SignedMessage
from protocol.tasks.registry import TaskInput, serves
from protocol.units import MS_PER_S, MessageId, Microcredits, ModelId, PeerId, UnixMs

log = logging.getLogger(__name__)

FIRST_WORD_S: Final = 10.0
"""Within this a peer that opens a stream has to have said what it wants."""
INPUT_WAIT_S: Final = 10.0


class Provider:
    """Serves ``/souk/quote/1`` and ``/souk/job/1``. Attach it before the network runs."""

    def __init__(
        self,
        party: Party,
        executor: Executor,
        admission: Admission,
        *,
        config: MarketSection,
        on_change: Callable[[], None],
    ) -> None:
        """``on_change`` is told when the last free slot goes, or the first one comes back."""
        self._party = party
        self._executor = executor
        self._admission = admission
        self._config = config
        self._on_change = on_change
        self.jobs: dict[MessageId, ProviderJob] = {}
        self._undecided: dict[MessageId, trio.Event] = {}
        self._late: set[tuple[PeerId, MessageId]] = set()
        self._signing: dict[MessageId, PeerId] = {}
        """Whose contracts we are putting our signature under; what comes of one is in ``jobs`` right after."""
        self._jobs_changed = trio.Event()

    def attach(self, network: Network) -> None:
        network.serve(QUOTE_PROTOCOL, self._serve_quote)
        network.serve(JOB_PROTOCOL, self._serve_job)

    def reconfigure(self, market: MarketSection) -> None:
        """Follow other prices and limits from now on; quotes that still stand and contracts keep theirs."""
        self._config = market
        self._admission.reconfigure(market)

    async def hand_back(self, peer_id: PeerId | None = None) -> int:
        """End every job of a peer, or of all, so that it can go on elsewhere; return how many there were."""
        jobs = [it for it in self.jobs.values() if peer_id in (None, it.contract.signer)]
        for job in jobs:
            with contextlib.suppress(trio.BrokenResourceError):
                await job.hand_back()
        return len(jobs)

    async def part_from(self, peer_id: PeerId) -> None:
        """Hand back every job of a peer, also one that is being signed for, and return when none is left."""
        while peer_id in (*self._signing.values(), *(job.contract.signer for job in self.jobs.values())):
            changed = self._jobs_changed
            await self.hand_back(peer_id)
            await changed.wait()

    @property
    def prices(self) -> Prices:
        return _prices(self._config)

    def queue_ms(self) -> int:
        """Return a guess of how long a new job waits for a slot: from measured speed, never promised."""
        waiting = self._admission.running - self._admission.slots
        models = self._executor.models()
        if waiting < 0 or not models:
            return 0
        per_token_ms = max(1_000 * MS_PER_S // max(model.tokens_per_s_milli, 1) for model in models)
        return (1 + waiting // max(self._admission.slots, 1)) * per_token_ms * self._config.voucher_window_tokens

    # Quotes.

    async def _serve_quote(self, stream: Stream) -> None:
        line = Line(stream, self._party)
        try:
            with trio.fail_after(FIRST_WORD_S):
                ask = await line.hear_untrusted(Ask)
                self._party.metrics.asked()
                try:
                    quote = self._quote(ask)
                    await self._store_quote(ask, quote)
                    await line.tell(quote)
                    self._party.metrics.quoted()
                except Refused as refused:
                    await self._decline(line, ask.message_id, refused)
                await line.finish()
        except (RemoteProtocolError, StreamLostError, trio.TooSlowError) as exc:
            self._note_broken("quote conversation broken", line.peer_id, exc)

    def _quote(self, ask: Signed[Ask]) -> Signed[Quote]:
        """Return a binding quote and hold a place for it. Raises: Refused, RemoteProtocolError."""
        self._check_disk()
        wanted, now_ms, now = ask.message, self._party.now_ms(), trio.current_time()
        if wanted.provider != self._party.peer_id:
            raise RemoteProtocolError("ask: put to another provider", reason=Reason.SIGNER)
        is_of_now = abs(wanted.sent_at_ms - now_ms) <= limits.CLOCK_SKEW_MS_MAX
        if not is_of_now or wanted.end_by_ms <= max(now_ms, wanted.sent_at_ms):
            raise Refused(DeclineCode.EXPIRED, f"the ask is of {wanted.sent_at_ms}, here it is {now_ms} (Unix ms)")
        model = self._model(wanted)
        check_fits(model, wanted.tokens_out_max)
        bound = price_bound(
            self.prices,
            tokens_in_max=min(wanted.tokens_in_max, model.context_tokens),
            tokens_out_max=wanted.tokens_out_max,
            duration_ms_max=wanted.end_by_ms - wanted.sent_at_ms,
        )
        if bound > wanted.price_max:
            raise Refused(
                DeclineCode.PRICE,
                f"the job may cost {bound} µc, the ask allows {wanted.price_max}",
                price_min=bound,
            )
        self._admission.check_credit(ask.signer, _first_window(self._config, wanted.tokens_in_max, bound), now)
        credit = Microcredits(min(bound, self._admission.credit_left(ask.signer, now)))
        quote = self._party.sign(
            Quote(
                ask_id=ask.message_id,
                hold_until_ms=now_ms + limits.QUOTE_HOLD_MS_MAX,
                dtype=model.dtype,
                profile=model.profile,
                prices=self.prices,
                price_max=bound,
                credit=credit,
                voucher_window_tokens=self._config.voucher_window_tokens,
                first_token_ms=self.queue_ms(),
                memory_bytes=model.job_bytes(wanted.tokens_in_max + wanted.tokens_out_max),
            )
        )
        until = now + limits.QUOTE_HOLD_MS_MAX / MS_PER_S
        hold = Hold(peer_id=ask.signer, reserve=credit, until=until, market=self._config)
        self._admission.hold(quote.message_id, hold, now=now)
        return quote

    async def _store_quote(self, ask: Signed[Ask], quote: Signed[Quote]) -> None:
        """Raises: Refused (the ledger cannot be written; nothing is held then)."""
        try:
            await self._party.ledger.post(
                *(
                    self._party.entry(signed, ask.message.job_id, ask.signer, contract_id=None)
                    for signed in (ask, quote)
                )
            )
        except BaseException as exc:
            self._admission.drop_hold(quote.message_id)
            if isinstance(exc, LedgerError):
                raise Refused(DeclineCode.FAILED, "the ledger cannot be written") from exc
            raise

    # Contracts.

    async def _serve_job(self, stream: Stream) -> None:
        line = Line(stream, self._party)
        try:
            with trio.fail_after(FIRST_WORD_S):
                first: Signed[SignedMessage] = await line.hear_untrusted(Contract, Resume)
            if isinstance(first.message, Resume):
                await self._resume(line, first.message)
                return
            assert isinstance(first.message, Contract)
            contract = Signed(first.message, first.envelope)
            check_contract_untrusted(contract, provider=self._party.peer_id, now_ms=self._party.now_ms())
            try:
                with self._deciding(contract.message_id):
                    job = await self._accept(line, contract)
            except Refused as refused:
                with trio.fail_after(FIRST_WORD_S):
                    await self._decline(line, contract.message_id, refused)
                    await line.finish()
                return
            await self._run(job, contract.message_id)
        except (RemoteProtocolError, StreamLostError, trio.TooSlowError) as exc:
            self._note_broken("job conversation broken", line.peer_id, exc)
        except NodeError as exc:
            log.error("job ended by a fault of ours", extra={"cause": str(exc)})

    async def _accept(self, line: Line, contract: Signed[Contract]) -> ProviderJob:
        """Check terms, read the input, take a place, tokenise, and sign.

        Raises: Refused (nothing is held then), RemoteProtocolError, StreamLostError, TooSlowError.
        """
        terms = contract.message
        model = self._check_terms(contract)
        place = Place(peer_id=contract.signer, reserve=Microcredits(min(terms.credit, terms.price_max)))
        with self._busy_change():
            self._admission.take(
                contract.message_id, place, quote_id=MessageId(terms.answers), now=trio.current_time()
            )
        prompt: Prompt | None = None
        loading_at_ms: UnixMs | None = None
        try:
            with trio.fail_after(INPUT_WAIT_S):
                salt, task_input = await read_input_untrusted(line, terms)
            self._admission.input_read(contract.message_id)
            if not model.is_loaded:
                loading_at_ms = self._party.now_ms()
            # Nobody waits for an acceptance any longer: a stuck worker must not keep the place.
            with trio.move_on_after((terms.accept_by_ms - terms.made_at_ms) / MS_PER_S) as in_time:
                prompt = await run_unless_left(line, partial(self._prepare, contract, task_input), Refused)
            if in_time.cancelled_caught or prompt is None:
                raise Refused(DeclineCode.EXPIRED, "the offer lapsed while the prompt was read")
            accept = await self._sign_and_store(contract, prompt, model)
        except BaseException as exc:
            with trio.CancelScope(shield=True):
                if prompt is not None:
                    await self._executor.release(prompt)
            with self._busy_change():
                self._admission.settle(contract.message_id, unpaid=0)
            if isinstance(exc, LedgerError):
                raise Refused(DeclineCode.FAILED, "the ledger cannot be written") from exc
            raise
        accepted = Accepted(
            contract=contract,
            accept=accept,
            salt=salt,
            prompt=prompt,
            model=model,
            may_owe=partial(self._may_owe, contract.message_id),
            operation=operation_of(task_input),
            loading_at_ms=loading_at_ms,
        )
        return ProviderJob(self._party, line, accepted)

    async def _resume(self, line: Line, resume: Resume) -> None:
        """Go on with a contract over this stream, or say from the books how it ended.

        Raises: RemoteProtocolError, StreamLostError, LedgerError, TooSlowError.
        """
        contract_id = MessageId(resume.contract_id)
        if (decided := self._undecided.get(contract_id)) is not None:
            with trio.fail_after(FIRST_WORD_S):
                await decided.wait()
        job = self.jobs.get(contract_id)
        if job is not None and job.contract.signer == line.peer_id and await job.attach(line, resume):
            return
        # With the peer: nobody else's question keeps a requester from bringing what it owes.
        who = line.peer_id, contract_id
        if who in self._late:
            raise RemoteProtocolError("resume: another stream settles this contract", reason=Reason.ORDER)
        self._late.add(who)
        late = LateContract(self._party, line)
        try:
            await late.serve(resume)
        finally:
            self._late.discard(who)
            self._admission.promised_late(line.peer_id, late.promised, now=trio.current_time())

    @contextlib.contextmanager
    def _deciding(self, contract_id: MessageId) -> Iterator[None]:
        """Let a requester that asks about its offer wait for the answer, while there is none."""
        if contract_id in self._undecided:
            raise RemoteProtocolError("contract: offered on two streams at once", reason=Reason.ORDER)
        decided = self._undecided[contract_id] = trio.Event()
        try:
            yield
        finally:
            del self._undecided[contract_id]
            decided.set()

    async def _run(self, job: ProviderJob, contract_id: MessageId) -> None:
        self.jobs[contract_id] = job
        is_queued = self._admission.running > self._admission.slots
        record = sale_record(job, contract_id, is_queued=is_queued)
        self._party.journal.begin_sale(contract_id, record)
        is_cut = False
        try:
            await job.run(self._executor, self._vacate)
        except LedgerError:
            # Handed back by a reset stream. As after a crash of ours, no debt stays with the requester.
            is_cut = True
            raise
        finally:
            del self.jobs[contract_id]
            self._note_change()
            record.tokens_out, record.cost_microcredits = job.tokens_out, job.vouchered
            record.energy_millijoules = job.energy_millijoules
            record.end(job_state(job.state), self._party.now_ms())
            with self._busy_change():
                self._admission.settle(contract_id, unpaid=0 if is_cut else job.unpaid, vouchered=job.vouchered)

    def _may_owe(self, contract_id: MessageId, owed: Microcredits) -> bool:
        return self._admission.window_allowed(contract_id, owed, now=trio.current_time())

    def _vacate(self, contract_id: MessageId) -> None:
        with self._busy_change():
            self._admission.vacate(contract_id)

    def _check_disk(self) -> None:
        """Begin nothing that cannot be written down. Raises: Refused."""
        try:
            self._party.ledger.check_writable()
        except LedgerDiskError as exc:
            # Not the error's own text: where our files lie is nobody's business.
            wait_ms = round(PROBE_S[1] * MS_PER_S)
            raise Refused(
                DeclineCode.FAILED, "the disk of this provider takes no contracts now", retry_after_ms=wait_ms
            ) from exc

    def _check_terms(self, contract: Signed[Contract]) -> ServedModel:
        """Raises: Refused, with what would have been taken where that helps."""
        self._check_disk()
        terms = contract.message
        now, quote_id = trio.current_time(), MessageId(terms.answers)
        market = self._admission.promised(quote_id, contract.signer, now) or self._config
        model = self._model(terms)
        check_fits(model, terms.tokens_out_max)
        if terms.dtype != model.dtype:
            raise Refused(DeclineCode.PROFILE, f"served in {model.dtype}, the contract says {terms.dtype}")
        if not not_dearer(_prices(market), than=terms.prices):
            raise Refused(DeclineCode.PRICE, "the prices have risen above the contract's")
        if terms.voucher_window_tokens > market.voucher_window_tokens:
            raise Refused(
                DeclineCode.CREDIT,
                f"vouchers are due every {market.voucher_window_tokens} tokens,"
                f" the contract says {terms.voucher_window_tokens}",
            )
        tokens_in_max = min(terms.tokens_in_max, model.context_tokens)
        # The price is capped by the contract's maximum: too low a maximum would buy a long answer for nothing.
        bound = price_bound(
            _prices(market),
            tokens_in_max=tokens_in_max,
            tokens_out_max=terms.tokens_out_max,
            duration_ms_max=terms.end_by_ms - terms.made_at_ms,
        )
        if bound > terms.price_max:
            raise Refused(
                DeclineCode.PRICE,
                f"the job may cost {bound} µc, the contract allows {terms.price_max}",
                price_min=bound,
            )
        needed = _first_window(market, tokens_in_max, terms.price_max)
        if terms.credit < needed:
            # The job would pause with nothing to pay.
            raise Refused(
                DeclineCode.CREDIT, f"the first window may cost {needed} µc, the credit is {terms.credit} µc"
            )
        return model

    def _model(self, wanted: Ask | Contract) -> ServedModel:
        for model in self._executor.models():
            if model.model_id == wanted.model_id:
                if serves(model.task, wanted.task):
                    return model
                raise Refused(DeclineCode.TASK_UNKNOWN, f"this model is served for {model.task} here")
        if any(worker.is_coming(ModelId(wanted.model_id)) for worker in self._executor.workers()):
            raise Refused(DeclineCode.BUSY, "its worker is being started again", retry_after_ms=RETRY_MS)
        raise Refused(DeclineCode.MODEL_UNKNOWN, "this model is not served here now")

    async def _prepare(self, contract: Signed[Contract], task_input: TaskInput) -> Prompt:
        terms, key = contract.message, contract.message_id.hex()
        model_id, tokens_out_max, scope = ModelId(terms.model_id), terms.tokens_out_max, bytes(terms.requester)
        try:
            prompt = await self._executor.prepare(key, model_id, task_input, tokens_out_max, scope=scope)
        except ExecutionError as exc:
            # As it is now: loading it may have found less room than there was.
            raise refused_by(exc, self._model(terms)) from exc
        if prompt.tokens_in > terms.tokens_in_max:
            await self._executor.release(prompt)
            raise Refused(
                DeclineCode.INPUT,
                f"the prompt has {prompt.tokens_in} tokens, the contract allows {terms.tokens_in_max}",
                tokens_max=terms.tokens_in_max,
            )
        return prompt

    async def _sign_and_store(
        self, contract: Signed[Contract], prompt: Prompt, model: ServedModel
    ) -> Signed[Accept]:
        """Return our signature under the contract, durable already. Raises: Refused, LedgerError."""
        now_ms = self._party.now_ms()
        if now_ms > contract.message.accept_by_ms + limits.CLOCK_SKEW_MS_MAX:
            raise Refused(DeclineCode.EXPIRED, "the offer lapsed while the prompt was read")
        # Again: the owner may have banned the peer since its place was taken.
        self._admission.check_welcome(contract.signer)
        accept = self._party.sign(
            Accept(
                contract_id=contract.message_id,
                accepted_at_ms=now_ms,
                tokens_in=prompt.tokens_in,
                memory_bytes=model.job_bytes(prompt.tokens_in + contract.message.tokens_out_max),
            )
        )
        entries = [
            self._party.entry(signed, contract.message.job_id, contract.signer, contract_id=contract.message_id)
            for signed in (contract, accept)
        ]
        self._signing[contract.message_id] = contract.signer
        try:
            await self._party.ledger.post(*entries, row=first_row(contract, accept, model=model.name), is_new=True)
        except KnownContractError as exc:
            raise Refused(DeclineCode.EXPIRED, "this contract has been taken already") from exc
        finally:
            del self._signing[contract.message_id]
            self._note_change()
        return accept

    def _note_change(self) -> None:
        """Wake whoever waits for a peer's jobs to be over."""
        self._jobs_changed.set()
        self._jobs_changed = trio.Event()

    async def _decline(self, line: Line, refers_to: MessageId, refused: Refused) -> None:
        # A decline binds nobody, so no disk is spent on it: strangers could fill it with asks.
        self._party.metrics.declined(refused.code)
        log.info("declined", extra={"peer": peer_id_to_text(line.peer_id), "code": refused.code})
        await line.tell(
            self._party.sign(
                Decline(
                    refers_to=refers_to,
                    code=refused.code,
                    message=str(refused)[: limits.TEXT_BYTES_MAX],
                    retry_after_ms=refused.retry_after_ms,
                    tokens_max=refused.tokens_max,
                    price_min=refused.price_min,
                )
            )
        )

    def _note_broken(self, event: str, peer_id: PeerId, exc: Exception) -> None:
        if isinstance(exc, RemoteProtocolError):
            self._party.metrics.peer_rejected(exc.reason)
        reason = exc.reason if isinstance(exc, RemoteProtocolError) else type(exc).__name__
        log.info(event, extra={"peer": peer_id_to_text(peer_id), "reason": reason, "cause": str(exc)})

    @contextlib.contextmanager
    def _busy_change(self) -> Iterator[None]:
        """Tell ``on_change`` if what happens inside takes the last free slot, or gives the first one back."""
        was_free = self._admission.slots_free(trio.current_time()) > 0
        yield
        if (self._admission.slots_free(trio.current_time()) > 0) != was_free:
            self._on_change()


def _prices(market: MarketSection) -> Prices:
    return Prices(
        fixed=market.price_fixed,
        tokens_in=market.price_in,
        tokens_out=market.price_out,
        per_s=market.price_per_s,
    )


def _first_window(market: MarketSection, tokens_in_max: int, price_max: int) -> int:
    """Return what prompt and first window may cost: less credit than that starts no job."""
    first_window = price_bound(
        _prices(market),
        tokens_in_max=tokens_in_max,
        tokens_out_max=market.voucher_window_tokens,
        duration_ms_max=0,
    )
    return min(first_window, price_max)
