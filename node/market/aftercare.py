"""Brings providers what a lost stream kept from them: our vouchers, and how a contract ended here (spec 03, 12).

All of it comes from the books, so that it is the same work after a crash of ours.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio

from node.errors import LedgerError, TransportError
from node.market.party import Line, Party
from node.net.interface import Stream
from protocol import limits
from protocol.contract import Cancel
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_to_text
from protocol.receipt import Closing
from protocol.resume import Resume
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.states import RequesterState, is_final
from protocol.units import MessageId, PeerId
from protocol.voucher import Voucher

log = logging.getLogger(__name__)

# More than one node leaves behind in its worst minute. What does not fit is in the books all the same.
WAITING_MAX: Final = 256
AT_ONCE_MAX: Final = 8
# The last one is after a provider has given a detached job up: its books then tell what is open.
PAUSES_S: Final = (0.5, 5.0, 40.0)
BRING_WAIT_S: Final = 10.0
# At a start: as many as one node may have had open when it stopped.
ADOPTED_MAX: Final = 64
_OWN: Final[tuple[type[SignedMessage], ...]] = (Voucher, Closing, Cancel)
_OWN_KINDS: Final = frozenset(it.kind for it in _OWN)

OpenStream: TypeAlias = Callable[[PeerId], Awaitable[Stream]]


class Aftercare:
    """Open with ``nursery.start_soon(aftercare.run)``; note contracts at any time."""

    def __init__(self, party: Party, open_stream: OpenStream) -> None:
        self._party = party
        self._open_stream = open_stream
        self._limit = trio.CapacityLimiter(AT_ONCE_MAX)
        self._waiting = 0
        self._send, self._receive = trio.open_memory_channel[tuple[MessageId, PeerId]](WAITING_MAX)

    def note(self, contract_id: MessageId, peer_id: PeerId) -> None:
        """See to a contract, which is over in our books, when there is time."""
        if self._waiting == WAITING_MAX:
            log.warning("too many contracts to bring to their providers", extra={"contract": contract_id.hex()})
            return
        self._waiting += 1
        self._send.send_nowait((contract_id, peer_id))

    async def run(self) -> None:
        """Bring what was noted until cancelled; what was not brought stays in the books."""
        async with trio.open_nursery() as nursery:
            await self._adopt_newest()
            async for contract_id, peer_id in self._receive:
                nursery.start_soon(self._see_to, contract_id, peer_id)

    async def _adopt_newest(self) -> None:
        """See to what a stop of ours may have cut: nobody waits for these answers any more."""
        try:
            rows = await self._party.ledger.contracts(ADOPTED_MAX)
        except LedgerError as exc:
            log.warning("contracts not read", extra={"cause": str(exc)})
            return
        oldest_ms = self._party.now_ms() - limits.JOB_LIFE_MS_MAX
        for row in rows:
            is_ours = row.role == "requester" and row.state is not RequesterState.DECLINED
            if is_ours and is_final(row.state) and row.at_ms > oldest_ms:
                self.note(row.contract_id, row.peer_id)

    async def _see_to(self, contract_id: MessageId, peer_id: PeerId) -> None:
        try:
            await self._try_to_bring(contract_id, peer_id)
        finally:
            self._waiting -= 1

    async def _try_to_bring(self, contract_id: MessageId, peer_id: PeerId) -> None:
        for pause_s in PAUSES_S:
            await trio.sleep(pause_s)
            try:
                async with self._limit:
                    with trio.fail_after(BRING_WAIT_S):
                        await self._bring(contract_id, peer_id)
                return
            except (TransportError, RemoteProtocolError, LedgerError, trio.TooSlowError) as exc:
                log.debug(
                    "provider not reached",
                    extra={
                        "contract": contract_id.hex(),
                        "peer": peer_id_to_text(peer_id),
                        "cause": str(exc) or type(exc).__name__,
                    },
                )

    async def _bring(self, contract_id: MessageId, peer_id: PeerId) -> None:
        """Raises: TransportError, RemoteProtocolError, LedgerError."""
        vouchers, last_words = await self._own_messages(contract_id)
        async with await self._open_stream(peer_id) as stream:
            line = Line(stream, self._party)
            resume = Resume(contract_id=contract_id, standing="over", frames=0, meter=0, voucher=len(vouchers))
            await line.tell(self._party.sign(resume))
            answer: Signed[Resume] = await line.hear_untrusted(Resume)
            if answer.message.standing != "unknown":
                # Numbered from 1 without a gap.
                for signed in (*vouchers[answer.message.voucher :], *last_words):
                    await line.tell(signed)
            await line.finish()
            # Its end mark says that all of it is in its books.
            while await line.receive_untrusted() is not None:
                pass

    async def _own_messages(
        self, contract_id: MessageId
    ) -> tuple[list[Signed[SignedMessage]], list[Signed[SignedMessage]]]:
        """Return our vouchers in order, and our closing, else our cancel. Raises: LedgerError."""
        found = await self._party.ledger.messages(contract_id.hex())
        if found is None:
            return [], []
        row, stored = found
        signed: list[Signed[SignedMessage]] = [
            read_untrusted(it.raw, network=self._party.network, allowed=_OWN)
            for it in stored
            if it.sender == "requester" and it.kind in _OWN_KINDS
        ]
        vouchers = [it for it in signed if isinstance(it.message, Voucher)]
        closings = [it for it in signed if isinstance(it.message, Closing)]
        last_words = closings or [it for it in signed if isinstance(it.message, Cancel)]
        if not last_words:
            # Cut by a stop of ours, before anybody could say so.
            cancel = self._party.sign(Cancel(contract_id=contract_id, code="failed", meter=len(vouchers)))
            await self._party.ledger.post(
                self._party.entry(cancel, row.job_id, row.peer_id, contract_id=contract_id)
            )
            last_words = [cancel]
        return vouchers, last_words
