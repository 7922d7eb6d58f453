"""One attempt at one provider, over as many streams as it takes: a lost stream is resumed (spec 03, section 12).

Once at least; and while nobody else could take over, for as long as the provider keeps the job. What is said on a
stream is ``requester_job.py``'s.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import trio

from node.errors import LedgerError, StreamLostError, TransportError
from node.market.party import Line, Party
from node.market.purchase import AttemptFailedError, Terms, failed_by
from node.market.requester_job import FAREWELL_S, RESUME_WAIT_S, RequesterJob
from node.net.interface import Stream
from protocol.identity import peer_id_to_text
from protocol.states import RequesterState
from protocol.units import MessageId, PeerId

log = logging.getLogger(__name__)

RESUME_PAUSE_S: Final = 1.0

Dial: TypeAlias = Callable[[], Awaitable[Stream]]


class Attempt:
    """Drives one ``RequesterJob``. ``patience_s`` is how long to try to get a lost stream back."""

    def __init__(self, party: Party, job: RequesterJob, *, dial: Dial, patience_s: float) -> None:
        self._party = party
        self._job = job
        self._dial = dial
        self._patience_s = patience_s
        self._asked_about_offer = False
        self._resume_ends_at = 0.0
        self._had = -1
        """Tokens at the last loss: a stream that brought none was no gain."""
        self._cause: Exception | None = None
        """Of the first loss: what follows while it is resumed says less."""
        self._scope = trio.CancelScope()
        self._offer_open_s = 0.0
        self.over = trio.Event()

    @property
    def peer_id(self) -> PeerId:
        return self._job.peer_id

    def leave(self) -> None:
        """End the attempt as if its user had left, until ``over``; the order goes on at the next provider."""
        self._offer_open_s = self._job.offer_open_s()
        self._scope.cancel()

    async def buy(self, terms: Terms) -> MessageId:
        """Return the receipt's id of a complete answer.

        Raises: AttemptFailedError, LedgerError; TransportError, TooSlowError (there was no stream at all).
        """
        try:
            with self._scope:
                return await self._buy(terms)
        finally:
            self.over.set()
        raise AttemptFailedError("banned", "banned by the owner of this node", wait_s=self._offer_open_s)

    async def _buy(self, terms: Terms) -> MessageId:
        stream = await self._dial()
        begin: Callable[[Line], Awaitable[None]] = partial(self._job.begin, terms=terms)
        while True:
            try:
                async with stream:
                    return await self._job.converse(Line(stream, self._party), begin)
            except AttemptFailedError:
                await self._job.give_up("failed")
                raise
            except (StreamLostError, trio.TooSlowError) as exc:
                stream = await self._dial_again(exc)
                begin = self._job.reattach

    async def _dial_again(self, cause: Exception) -> Stream:
        """Return another stream to the provider. Raises: AttemptFailedError (it is given up), LedgerError."""
        job = self._job
        try:
            is_at_once = self._had != job.tokens_out
            while self._may_resume(cause):
                if not is_at_once:
                    await trio.sleep(RESUME_PAUSE_S)
                is_at_once = False
                try:
                    with trio.fail_after(RESUME_WAIT_S):
                        return await self._dial()
                except (TransportError, trio.TooSlowError) as exc:
                    cause = exc
        except BaseException:
            farewell = trio.CancelScope(shield=True)
            with farewell, trio.move_on_after(FAREWELL_S), contextlib.suppress(LedgerError):
                await job.give_up(job.why_cancelled())
            raise
        wait_s = job.offer_open_s()
        await job.give_up("failed")
        first = cause if self._cause is None else self._cause
        what = "no sign of life" if isinstance(first, trio.TooSlowError) else "gone"
        raise failed_by(first, what, wait_s=wait_s) from first

    def _may_resume(self, cause: Exception) -> bool:
        """Return whether the provider may still have the job, and there is time to try; note a first loss."""
        is_silent = isinstance(cause, trio.TooSlowError)
        now, job = trio.current_time(), self._job
        if job.state is RequesterState.OFFERED:
            # Asked once whether it took the contract; one that was silent has answered.
            may, self._asked_about_offer = not is_silent and not self._asked_about_offer, True
            return may
        if job.state in (RequesterState.FORMED, RequesterState.STREAMING):
            log.info("stream lost", extra={"peer": peer_id_to_text(job.peer_id), "cause": str(cause)})
            is_over = now >= job.state_ends_at()
            job.lost(is_silent=is_silent)
            if self._had != job.tokens_out:
                self._had = job.tokens_out
                self._cause, self._resume_ends_at = cause, now + self._patience_s
                return not is_over
        return job.state is RequesterState.RESUMING and now + RESUME_PAUSE_S < self._resume_ends_at
