"""The buying side: finds who can run an order, tries them in turn, and runs it here when this node can (spec 03).

The requester's own log of answer tokens is the truth: when a provider dies in mid-answer, a new contract goes
on at the next token with the same seed, so that the reader sees no token lost and none twice.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Final

import trio

from node.clock import to_ms
from node.config import MarketSection
from node.discovery.directory import Candidate, Directory
from node.errors import ExecutionError, JobRefusedError, LedgerError, TransportError
from node.execution.interface import Executor, Piece, Prompt, ServedModel
from node.market.aftercare import Aftercare
from node.market.attempt import Attempt
from node.market.journal import JobRecord, Step, operation_of
from node.market.order import (
    Asking,
    Contracted,
    DeadlineError,
    Finished,
    JobEvent,
    JobFailedError,
    Order,
    OrderCancelledError,
    OrderError,
    PassedOver,
    UnknownModelError,
    WrongTaskError,
)
from node.market.party import Party
from node.market.purchase import AnswerLog, AttemptFailedError, Purchase, Terms, make_purchase
from node.market.refusals import counter_offer, nobody, refusal
from node.market.requester_job import RESUME_WAIT_S, RequesterJob
from node.market.spending import Spending
from node.market.trace import OrderTrace
from node.metrics import JobState, Role
from node.model_names import names_model
from node.net.interface import Network, Stream
from protocol import limits
from protocol.errors import DeclineCode, RemoteProtocolError
from protocol.framing import JOB_PROTOCOL, QUOTE_PROTOCOL
from protocol.price import price_bound
from protocol.tasks.registry import serves, task_of
from protocol.units import MS_PER_S, JobId, MessageId, Microcredits, PeerId

log = logging.getLogger(__name__)

JOB_ID_BYTES: Final = 16
DIAL_WAIT_S: Final = 10.0
CANDIDATES_MAX: Final = 16
# A standing offer older than this is asked about first: slots and prices may have moved.
STANDING_OFFER_S_MAX: Final = 60.0
# When everybody who could is busy, how long to try again.
BUSY_PATIENCE_S: Final = 60.0
BUSY_RETRY_S: Final = 1.0
# A provider's terms for us may differ from those for everybody: less credit left, a smaller window.
ASK_INSTEAD: Final = (DeclineCode.CREDIT, DeclineCode.PRICE, DeclineCode.PROFILE)
_STATES: Final[dict[type[Exception], JobState]] = {DeadlineError: "expired", OrderCancelledError: "cancelled"}


class Requester:
    """Carries orders out; ``node.api`` gives them in."""

    def __init__(
        self,
        party: Party,
        network: Network,
        directory: Directory,
        executor: Executor,
        *,
        config: MarketSection,
        look_up: Callable[[str], Awaitable[int]],
    ) -> None:
        """``look_up`` asks the DHT for a model's providers and puts them into the directory."""
        self._party = party
        self._network = network
        self._directory = directory
        self._executor = executor
        self._config = config
        self._look_up = look_up
        self.spending = Spending(config, clock=trio.current_time)
        self._aftercare = Aftercare(party, self._open_job_stream)
        self.jobs: dict[JobId, RequesterJob] = {}
        self.jobs_here: dict[JobId, str] = {}
        """Orders that our own devices carry out, by the model's name."""
        self._traces: dict[JobId, OrderTrace] = {}
        self._attempts: dict[JobId, Attempt] = {}

    def reconfigure(self, market: MarketSection) -> None:
        """Follow other prices and limits from the next order on."""
        self._config = market
        self.spending.reconfigure(market)

    async def run(self) -> None:
        """Bring providers what could not be brought at once, until cancelled; orders are taken at any time."""
        await self._aftercare.run()

    async def submit(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> None:
        """Run an order to its end and send every event, ``Finished`` last.

        A full sink makes us read slower, never lose. Cancelling cancels the job at its provider.

        Raises: OrderError (the subclass says how it failed), LedgerError.
        """
        trace = self._begin(order, sink)
        state: JobState = "cancelled"
        code = message = ""
        try:
            own = self._own_model(order)
            trace.record.role = "requester" if own is None else "local"
            if own is None:
                # Our own devices work without a contract, and so on a full disk, too.
                self._party.ledger.check_writable()
            await self._carry_out(order, own, trace)
            state = "closed"
        except (OrderError, LedgerError) as exc:
            state = _STATES.get(type(exc), "failed")
            code, message = exc.code if isinstance(exc, OrderError) else "ledger", str(exc)
            raise
        finally:
            del self._traces[trace.job_id]
            trace.end(state, code=code, message=message)
            self._party.metrics.job_over(trace.record.role, state, code)

    async def cancel(self, job_id: JobId) -> bool:
        """End an open order as if its user had left, and wait for that; return whether there was one."""
        trace = self._traces.get(job_id)
        if trace is None:
            return False
        await trace.cancel()
        return True

    async def part_from(self, peer_id: PeerId) -> None:
        """Break off what is being bought at a peer and return when that is over; the orders go on elsewhere."""
        leaving = [it for it in self._attempts.values() if it.peer_id == peer_id]
        for attempt in leaving:
            attempt.leave()
        for attempt in leaving:
            await attempt.over.wait()

    def _begin(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> OrderTrace:
        job_id = order.job_id or JobId(self._party.entropy(JOB_ID_BYTES))
        record = JobRecord(
            role="requester",
            job_id=job_id,
            model=order.model,
            started_ms=self._party.now_ms(),
            operation=operation_of(order.task_input),
        )
        self._party.journal.begin_order(record)
        trace = self._traces[job_id] = OrderTrace(record, sink, self._party.now_ms)
        return trace

    async def _carry_out(self, order: Order, own: ServedModel | None, trace: OrderTrace) -> None:
        ends_at = trio.current_time() + min(order.deadline_s, limits.JOB_LIFE_MS_MAX / MS_PER_S)
        trace.scope.deadline = ends_at
        with trace.scope:
            if own is not None:
                self.jobs_here[trace.job_id] = own.name
                try:
                    await self._run_here(order, own, trace)
                finally:
                    del self.jobs_here[trace.job_id]
            else:
                finished = await self._buy(order, ends_at, trace)
                await trace.send(finished)
        if trace.scope.cancelled_caught:
            if trace.was_cancelled:
                raise OrderCancelledError("the job was cancelled on this node (souk job cancel)")
            raise DeadlineError(f"the order was not complete within its {order.deadline_s:g} s")

    # On our own devices.

    def _own_model(self, order: Order) -> ServedModel | None:
        if order.where not in ("any", "local", self._party.peer_id):
            return None
        task = task_of(order.task_input)
        named = [it for it in self._executor.models() if names_model(order.model, it.name, it.model_id)]
        if order.where == "any":
            # Others may have the room that is lacking here.
            named = [it for it in named if it.lacks != "memory"]
        for model in named:
            if serves(model.task, task):
                return model
        if named and order.where != "any":
            raise WrongTaskError(order.model, wanted=task, offered=tuple({model.task for model in named}))
        if order.where in ("local", self._party.peer_id):
            own = tuple(model.name for model in self._executor.models())
            raise UnknownModelError(order.model, own, here=True)
        return None

    async def _run_here(self, order: Order, model: ServedModel, trace: OrderTrace) -> None:
        """Run the order without a contract: nobody signs with himself."""
        me, job_id, began = self._party.peer_id, trace.job_id, trio.current_time()
        await trace.send(Asking(job_id=job_id, peer_ids=(me,)))
        prompt: Prompt | None = None
        if not model.is_loaded:
            trace.record.note(Step(name="loading", at_ms=self._party.now_ms(), peer_id=me))
        try:
            prompt = await self._executor.prepare(
                job_id.hex(), model.model_id, order.task_input, order.tokens_out_max, scope=me
            )
            await trace.send(
                Contracted(
                    peer_id=me,
                    contract_id=None,
                    price_max_microcredits=Microcredits(0),
                    tokens_in=prompt.tokens_in,
                )
            )
            answer_log = AnswerLog(gaps=self._party.metrics.token_gaps("local", model.name))
            await self._generate_here(order, prompt, trace, answer_log)
        except JobRefusedError as exc:
            raise refusal(exc.code, str(exc)) from exc
        except ExecutionError as exc:
            raise JobFailedError(str(exc), code=exc.code) from exc
        except BaseException:
            # The user has left: the worker need not hold a prompt that will not run.
            if prompt is not None:
                with trio.CancelScope(shield=True):
                    await self._executor.release(prompt)
            raise
        assert answer_log.finish is not None and answer_log.first_token_at is not None
        finished = Finished(
            job_id=job_id,
            peer_id=me,
            contract_id=None,
            receipt_id=None,
            finish=answer_log.finish,
            tokens_in=prompt.tokens_in,
            tokens_out=answer_log.units,
            cost_microcredits=Microcredits(0),
            first_token_ms=to_ms(answer_log.first_token_at - began),
            duration_ms=to_ms(trio.current_time() - began),
        )
        self._count_times("local", model.name, finished)
        self._party.metrics.tokens(
            "local", model.name, tokens_in=finished.tokens_in, tokens_out=finished.tokens_out
        )
        await trace.send(finished)

    async def _generate_here(self, order: Order, prompt: Prompt, trace: OrderTrace, answer_log: AnswerLog) -> None:
        """Send the answer of a prepared prompt. Raises: ExecutionError, BrokenResourceError (nobody reads)."""
        post, pieces = trio.open_memory_channel[Piece](order.tokens_out_max + 1)
        # Raised below, bare: a nursery would wrap it in a group.
        fault: ExecutionError | trio.BrokenResourceError | None = None

        async def work() -> None:
            nonlocal fault
            with post:
                try:
                    await self._executor.generate(
                        prompt, order.sampling, tokens_out_max=order.tokens_out_max, sink=post
                    )
                except ExecutionError as exc:
                    fault = exc

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            try:
                async for piece in pieces:
                    trace.record.energy_millijoules = piece.energy_millijoules
                    if answer_log.first_token_at is None:
                        answer_log.first_token_at = trio.current_time()
                    for event in answer_log.take(piece.output):
                        await trace.send(event)
            except trio.BrokenResourceError as exc:
                fault = exc
                nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault

    # At others.

    async def _buy(self, order: Order, ends_at: float, trace: OrderTrace) -> Finished:
        """Try candidates until the answer is complete; each goes on where the one before it was cut.

        Raises: OrderError.
        """
        job_id, began = trace.job_id, trio.current_time()
        answer_log = AnswerLog()
        refusals: dict[PeerId, PassedOver] = {}
        receipt_id: MessageId | None = None
        last_peer, model = self._party.peer_id, ""
        allowed = order.price_max_microcredits
        price_max = self._config.price_max if allowed is None else allowed
        while answer_log.finish is None and answer_log.units < order.tokens_out_max:
            purchase = make_purchase(order, job_id, answer_log, price_max=price_max, ends_at=ends_at)
            candidates = await self._next_candidates(purchase, refusals, patience_ends_at=began + BUSY_PATIENCE_S)
            if not candidates:
                counter = counter_offer(purchase, refusals.values())
                if counter is None:
                    raise nobody(answer_log, tuple(refusals.values()))
                order = replace(order, tokens_out_max=answer_log.units + counter.tokens_out_max)
                del refusals[counter.peer_id]
                continue
            await trace.send(Asking(job_id=job_id, peer_ids=tuple(it.peer_id for it in candidates)))
            for candidate in candidates:
                last_peer, model = candidate.peer_id, candidate.offer.name
                held = answer_log.units
                answer_log.gaps = self._party.metrics.token_gaps("requester", model)
                receipt_id = await self._try(purchase, candidate, refusals, trace)
                answer_log.cut()
                if answer_log.finish is not None or answer_log.units > held:
                    break
        first_token_at = began if answer_log.first_token_at is None else answer_log.first_token_at
        finished = Finished(
            job_id=job_id,
            peer_id=last_peer,
            contract_id=answer_log.contract_ids[-1],
            receipt_id=receipt_id,
            finish=answer_log.finish or "length",
            tokens_in=answer_log.tokens_in,
            tokens_out=answer_log.units,
            cost_microcredits=Microcredits(answer_log.spent),
            first_token_ms=to_ms(first_token_at - began),
            duration_ms=to_ms(trio.current_time() - began),
            continued=tuple(answer_log.contract_ids[:-1]),
        )
        self._count_times("requester", model, finished)
        return finished

    async def _next_candidates(
        self, purchase: Purchase, refusals: dict[PeerId, PassedOver], *, patience_ends_at: float
    ) -> list[Candidate]:
        """Return whom to try now: those not tried yet, else, after a pause, those that were busy, else nobody.

        Raises: OrderError: there never was anybody.
        """
        if not refusals:
            return await self._find(purchase)
        fresh = [it for it in self._ranked(purchase) if it.peer_id not in refusals]
        if fresh:
            return fresh
        busy = {peer for peer, passed in refusals.items() if passed.code == DeclineCode.BUSY}
        if busy and trio.current_time() + BUSY_RETRY_S < patience_ends_at:
            # Full jitter: a hundred requesters that were refused together must not come back together.
            wait_s = max(BUSY_RETRY_S, min(refusals[peer].retry_after_s for peer in busy))
            await trio.sleep(wait_s * (1 + self._party.entropy(1)[0] / 255))
            again = [it for it in self._ranked(purchase) if it.peer_id in busy]
            if again:
                return again
        return []

    async def _find(self, purchase: Purchase) -> list[Candidate]:
        """Return who may be tried, best first. Raises: UnknownModelError."""
        order = purchase.order
        found = self._matching(order)
        if not found:
            # Gossip may not have told us of it yet: then the DHT may know.
            await self._look_up(order.model)
            found = self._matching(order)
        if not found and (others := self._directory.candidates(order.model, self._party.now_ms())):
            wanted, offered = purchase.task, {it.offer.task for it in others}
            raise WrongTaskError(order.model, wanted=wanted, offered=tuple(sorted(offered)))
        if not found:
            known = {model.name for model in self._executor.models()}
            known.update(self._directory.model_names(self._party.now_ms()))
            raise UnknownModelError(order.model, tuple(sorted(known)))
        return self._ranked(purchase)

    def _ranked(self, purchase: Purchase) -> list[Candidate]:
        wanted = purchase.log.dtype
        found = [it for it in self._matching(purchase.order) if wanted is None or it.offer.dtype == wanted]
        found.sort(key=lambda candidate: self._rank(purchase, candidate))
        # Each peer once: sixteen offers of one that is silent would hold an order up sixteen times.
        best: dict[PeerId, Candidate] = {}
        for candidate in found:
            best.setdefault(candidate.peer_id, candidate)
        return list(best.values())[:CANDIDATES_MAX]

    def _matching(self, order: Order) -> list[Candidate]:
        task = task_of(order.task_input)
        known = self._directory.candidates(order.model, self._party.now_ms())
        found = [candidate for candidate in known if serves(candidate.offer.task, task)]
        if order.where in ("any", "remote"):
            return found
        return [candidate for candidate in found if candidate.peer_id == order.where]

    def _rank(self, purchase: Purchase, candidate: Candidate) -> tuple[bool, bool, int, int, int, bytes]:
        """Kept words, a free slot, the shorter queue, the lower price, the faster device, then a fair draw."""
        advert, offer = candidate.listing.advert, candidate.offer
        bound = price_bound(
            offer.prices,
            tokens_in_max=min(purchase.tokens_in_max, offer.context_tokens),
            tokens_out_max=purchase.tokens_out_max,
            duration_ms_max=0,
        )
        draw = sha256(purchase.job_id + candidate.peer_id).digest()
        has_no_slot = advert.slots_free == 0
        return (candidate.is_doubted, has_no_slot, advert.queue_ms, bound, -offer.tokens_per_s_milli, draw)

    async def _try(
        self,
        purchase: Purchase,
        candidate: Candidate,
        refusals: dict[PeerId, PassedOver],
        trace: OrderTrace,
    ) -> MessageId | None:
        """Return the receipt's id, or None after noting why this one is passed over."""
        order = purchase.order
        job = RequesterJob(self._party, purchase, candidate, emit=trace.send, leave=self._aftercare.note)
        self.jobs[purchase.job_id] = job
        try:
            return await self._attempt(job, purchase, candidate, patience_s=self._patience_s(purchase, refusals))
        except AttemptFailedError as exc:
            if order.path == "auto" and job.took_standing_offer and exc.code in ASK_INSTEAD:
                # What it tells everybody does not hold for us now; what it quotes will.
                asked = replace(purchase, order=replace(order, path="quote"))
                return await self._try(asked, candidate, refusals, trace)
            # Whatever it says, the next one is asked: a liar's "bad input" must not end everybody's orders.
            passed = PassedOver(
                peer_id=candidate.peer_id,
                code=exc.code,
                message=str(exc),
                retry_after_s=exc.retry_after_s,
                tokens_max=exc.tokens_max,
            )
            refusals[candidate.peer_id] = passed
            if isinstance(exc.__cause__, RemoteProtocolError):
                self._party.metrics.peer_rejected(exc.__cause__.reason)
            await trace.send(passed)
            if exc.code in ("unreachable", "silent", "broke_protocol"):
                # Until it says something new, whoever else there is comes first.
                self._directory.doubt(candidate.peer_id)
            await trio.sleep(exc.wait_s)
            return None
        finally:
            self.jobs.pop(purchase.job_id, None)
            trace.record.cost_microcredits = purchase.log.spent
            if job.contract is not None:
                self._party.metrics.contract_over("requester", job.state)
                self._party.metrics.tokens(
                    "requester", job.model_name, tokens_in=job.tokens_in, tokens_out=job.tokens_out
                )

    def _count_times(self, role: Role, model: str, finished: Finished) -> None:
        self._party.metrics.first_token(role, model, finished.first_token_ms / MS_PER_S)
        self._party.metrics.job_took(role, model, finished.duration_ms / MS_PER_S)

    def _patience_s(self, purchase: Purchase, refusals: dict[PeerId, PassedOver]) -> float:
        """Return how long to try to get a lost stream back: hardly, while somebody else could go on."""
        left = [it for it in self._ranked(purchase) if it.peer_id not in refusals]
        return 0.0 if len(left) > 1 else limits.DETACHED_MS_MAX / MS_PER_S - RESUME_WAIT_S

    async def _open_job_stream(self, peer_id: PeerId) -> Stream:
        return await self._network.open_stream(peer_id, JOB_PROTOCOL)

    async def _dial(self, peer_id: PeerId) -> Stream:
        """Raises: TransportError, TooSlowError."""
        with trio.fail_after(DIAL_WAIT_S):
            return await self._open_job_stream(peer_id)

    async def _attempt(
        self, job: RequesterJob, purchase: Purchase, candidate: Candidate, *, patience_s: float
    ) -> MessageId:
        order = purchase.order
        if purchase.tokens_held + purchase.tokens_out_max >= candidate.offer.context_tokens:
            raise AttemptFailedError(
                DeclineCode.CONTEXT_EXCEEDED,
                f"{order.tokens_out_max} answer tokens do not fit a context of {candidate.offer.context_tokens}",
            )
        try:
            terms = await self._agree(job, order, candidate)
            dial = partial(self._dial, candidate.peer_id)
            attempt = Attempt(self._party, job, dial=dial, patience_s=patience_s)
            self._attempts[purchase.job_id] = attempt
            with self.spending.at_risk(candidate.peer_id, terms.price_max, purchase.log):
                return await attempt.buy(terms)
        except TransportError as exc:
            raise AttemptFailedError("unreachable", str(exc)) from exc
        except trio.TooSlowError as exc:
            raise AttemptFailedError("unreachable", f"no connection within {DIAL_WAIT_S:g} s") from exc
        finally:
            self._attempts.pop(purchase.job_id, None)

    async def _agree(self, job: RequesterJob, order: Order, candidate: Candidate) -> Terms:
        """Raises: AttemptFailedError, TransportError, TooSlowError."""
        now_ms, listing = self._party.now_ms(), candidate.listing
        is_fresh = (
            now_ms - listing.heard_at_ms <= STANDING_OFFER_S_MAX * MS_PER_S
            and listing.advert.slots_free > 0
            and listing.advert.expires_at_ms > now_ms
        )
        if order.path == "fast" or (order.path == "auto" and is_fresh):
            return job.standing_terms()
        with trio.fail_after(DIAL_WAIT_S):
            stream = await self._network.open_stream(candidate.peer_id, QUOTE_PROTOCOL)
        async with stream:
            return await job.ask(stream)
