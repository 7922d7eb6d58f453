"""The ledger for trio: one writer that commits what waits together, and reads that never block the loop.

A posting is durable when ``post`` returns: write to disk, then send. A caller that is cancelled meanwhile does
not know the outcome; posting the same message again is one entry.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from node.errors import KnownContractError, LedgerError
from node.ledger.audit import Audit, audit_file
from node.ledger.books import ListedEntry, PeerAccount, count_proofs, entries_after, peer_accounts, proofs
from node.ledger.disk import Disk, FileDisk
from node.ledger.entries import ContractRow, Entry, Role, StoredMessage, StoredProof, Totals
from node.ledger.health import DiskHealth, is_of_disk
from node.ledger.settlement import (
    ListedStatement,
    PairBooks,
    SettlementEnvelopes,
    pair_books,
    settlement_envelopes,
    statements,
)
from node.ledger.standing import Standings, standings
from node.ledger.store import LedgerStore
from node.ledger.timelines import Timeline, read_timeline
from protocol.envelope import Envelope
from protocol.equivocation import Proof
from protocol.identity import peer_id_to_text
from protocol.units import MessageId, PeerId, UnixMs

log = logging.getLogger(__name__)

# Waiting postings; the next caller waits. Far above what one process can have in flight.
QUEUE_MAX: Final = 256
# Commits share one fsync: 50 jobs at once would otherwise queue for 50 of them at every step.
BATCH_MAX: Final = 64
# How long a disk that refused is left alone before it is tried again: at first, and at most.
PROBE_S: Final = (1.0, 15.0)

T = TypeVar("T")


@dataclass(slots=True)
class _Posting:
    entries: tuple[Entry, ...]
    row: ContractRow | None
    new: tuple[MessageId, ...] = ()
    fingerprint: bytes = b""
    """Of the row's contract."""
    done: trio.Event = field(default_factory=trio.Event)
    error: LedgerError | None = None


class Ledger:
    """Open with ``await nursery.start(ledger.run)``; post and read until that is cancelled."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """``disk`` is the machine's own unless a simulation brings another."""
        self._path = path
        self._disk = FileDisk(path) if disk is None else disk
        self._store = LedgerStore(path, self._disk)
        self.health = DiskHealth(path)
        self._audits = trio.CapacityLimiter(1)
        self._writer = trio.Lock()
        self._is_open = False
        self._cut: set[MessageId] = set()
        """Contracts whose newest row the disk refused."""
        self._send, self._receive = trio.open_memory_channel[_Posting](QUEUE_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what was accepted before is still written. Raises: LedgerError (cannot open)."""
        await self._in_thread(self._store.open)
        try:
            ended = await self._read(self._store.end_interrupted)
            if ended:
                log.warning("contracts interrupted by the last stop", extra={"count": ended})
            self._is_open = True
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._try_again)
                task_status.started()
                await self._write_what_waits()
        finally:
            with trio.CancelScope(shield=True):
                await self._finish()

    async def post(
        self, *entries: Entry, row: ContractRow | None = None, is_new: bool = False, fingerprint: bytes = b""
    ) -> None:
        """Write messages and where their contract stands; durable on return.

        Args:
            is_new: that there is no row of this contract yet, also from before a restart.
            fingerprint: of what was computed under it, kept beside the row; the newest ones only.

        Raises: LedgerError (``LedgerDiskError``: the disk is at fault, and is tried again by itself;
            ``KnownContractError``: ``is_new`` is not so, and nothing was written).
        """
        new = (row.contract_id,) if is_new and row is not None else ()
        posting = _Posting(entries, row, new=new, fingerprint=fingerprint)
        # Shielded: a caller that is cancelled here has counted the message already, and will not say it again.
        with trio.CancelScope(shield=True):
            await self._begin(posting)
        if not posting.done.is_set():
            await posting.done.wait()
        if posting.error is not None:
            raise posting.error

    async def _begin(self, posting: _Posting) -> None:
        """Write it from the caller's task if nobody writes now, else queue it. Raises: LedgerError (closed)."""
        if self._is_open:
            with contextlib.suppress(trio.WouldBlock):
                self._writer.acquire_nowait()
                # A posting that takes the way over the other task costs 40 us more.
                try:
                    await self._write([posting])
                finally:
                    self._writer.release()
                return
        try:
            await self._send.send(posting)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            raise LedgerError(f"{self._path}: the ledger is closed") from exc

    async def _write_what_waits(self) -> None:
        async for first in self._receive:
            with trio.CancelScope(shield=True):
                async with self._writer:
                    batch = [first]
                    while len(batch) < BATCH_MAX:
                        try:
                            batch.append(self._receive.receive_nowait())
                        except trio.WouldBlock:
                            break
                    await self._write(batch)

    async def _try_again(self) -> None:
        """While the disk refuses, see now and then whether it takes something; end what was cut when it does."""
        while True:
            await self.health.wait_fault()
            wait_s, wait_s_max = PROBE_S
            while self.health.fault is not None:
                # No polling to be spared: nobody tells us that somebody has deleted a file.
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, wait_s_max)
                with trio.CancelScope(shield=True):
                    async with self._writer:
                        await self._probe()

    async def witness(self, envelope: Envelope, at_ms: UnixMs) -> None:
        """Keep the proof that a message which we refused makes with one of its signer's that we hold, if any."""
        try:
            proof = await self._read(lambda: self._store.witness(envelope, at_ms))
        except LedgerError as exc:
            # A conversation that ended here would leave its contract open: it has an end of its own to write.
            log.warning("proof not kept", extra={"peer": peer_id_to_text(envelope.signer), "cause": str(exc)})
            return
        if proof is not None:
            _tell(proof)

    def check_writable(self) -> None:
        """Raises: LedgerDiskError while the disk refuses: nothing new is to be begun."""
        if self.health.fault is not None:
            raise self.health.error()

    async def contracts(self, limit: int) -> list[ContractRow]:
        """Return the newest contracts first."""
        return await self._read(lambda: self._store.contracts(limit))

    async def timelines(self, role: Role, limit: int) -> list[Timeline]:
        """Return what the books prove of the newest contracts in which we had ``role``, the oldest first."""

        def read() -> list[Timeline]:
            return [read_timeline(self._store.db, row) for row in self._store.contracts(limit, role=role)][::-1]

        return await self._read(read)

    async def messages(self, prefix: str) -> tuple[ContractRow, list[StoredMessage]] | None:
        """Return the one contract whose id begins with these hex digits, and its messages."""

        def find() -> tuple[ContractRow, list[StoredMessage]] | None:
            row = self._store.find_contract(prefix)
            return None if row is None else (row, self._store.messages(row))

        return await self._read(find)

    async def fingerprint(self, contract_id: MessageId) -> bytes | None:
        """Return what is kept of the answer that a peer bought by this contract; None when that is nothing."""
        return await self._read(lambda: self._store.fingerprint(contract_id))

    async def totals(self) -> Totals:
        return await self._read(self._store.totals)

    async def standings(self, now_ms: UnixMs, *, forgive_after_days: int) -> Standings:
        """Return what is open with every peer, for the exposure rule."""
        return await self._read(lambda: standings(self._store.db, now_ms, forgive_after_days))

    async def pair_books(self, us: PeerId, peer_id: PeerId) -> PairBooks:
        """Return where we stand with a peer, for an exchange of statements."""
        return await self._read(lambda: pair_books(self._store.db, us, peer_id))

    async def statements(self, peer_id: PeerId | None, limit: int) -> list[ListedStatement]:
        """Return the newest statements first, with one peer or all."""
        return await self._read(lambda: statements(self._store.db, peer_id, limit))

    async def settlement_envelopes(self, peer_id: PeerId) -> SettlementEnvelopes | None:
        """Return what a settlement bundle with one peer is made of; None when both signed nothing."""
        return await self._read(lambda: settlement_envelopes(self._store.db, peer_id))

    async def peer_accounts(self) -> list[PeerAccount]:
        """Return what passed between this node and each peer."""
        return await self._read(lambda: peer_accounts(self._store.db))

    async def entries_after(self, number: int, limit: int) -> list[ListedEntry]:
        """Return the next entries in the order in which they were written."""
        return await self._read(lambda: entries_after(self._store.db, number, limit))

    async def proofs(self, limit: int) -> tuple[int, list[StoredProof]]:
        """Return how many proofs of equivocation are kept, and the newest of them."""
        return await self._read(lambda: (count_proofs(self._store.db), proofs(self._store.db, limit)))

    async def audit(self) -> Audit:
        """Check every hash, signature and sum over a connection of its own. Raises: LedgerError."""

        def check() -> Audit:
            return audit_file(self._path, trio.from_thread.check_cancelled)

        # Not on the ledger's own thread: 100 000 entries take half a minute, and postings must not wait for that.
        return await trio.to_thread.run_sync(check, limiter=self._audits)

    async def verify(self) -> int:
        """Return the number of entries once the hash chain holds. Raises: LedgerError."""
        return await self._read(self._store.verify)

    async def _read(self, query: Callable[[], T]) -> T:
        try:
            return await self._in_thread(query)
        except sqlite3.Error as exc:
            if is_of_disk(exc):
                raise self.health.note(exc) from exc
            raise LedgerError(f"{self._path}: cannot be read: {exc}") from exc

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await self._disk.run(partial(call, *args))

    async def _write(self, batch: list[_Posting]) -> None:
        try:
            fault = await self._in_thread(self._write_batch, batch)
        except BaseException:
            # Whoever waits may be shielded from our end: unanswered it would wait for ever.
            for posting in batch:
                posting.error = LedgerError(f"{self._path}: the ledger has ended, and may not have written this")
                posting.done.set()
            raise
        if fault is not None:
            error = self.health.note(fault)
            for posting in batch:
                posting.error = error
        for posting in batch:
            is_cut = posting.error is not None and not isinstance(posting.error, KnownContractError)
            if is_cut and posting.row is not None:
                self._cut.add(posting.row.contract_id)
            posting.done.set()

    def _write_batch(self, batch: list[_Posting]) -> sqlite3.Error | None:
        """Write all, or each alone if one of them is bad; return the error if it is the disk that refuses."""
        try:
            made = self._store.write(
                [entry for posting in batch for entry in posting.entries],
                [posting.row for posting in batch if posting.row is not None],
                new=[contract_id for posting in batch for contract_id in posting.new],
                fingerprints=[
                    (posting.row.contract_id, posting.fingerprint)
                    for posting in batch
                    if posting.row is not None and posting.fingerprint
                ],
            )
        except (sqlite3.Error, KnownContractError) as exc:
            if isinstance(exc, sqlite3.Error) and is_of_disk(exc):
                return exc
            if len(batch) > 1:
                # One bad posting must not fail its neighbours.
                faults = [self._write_batch([posting]) for posting in batch]
                return next((fault for fault in faults if fault is not None), None)
            if isinstance(exc, KnownContractError):
                batch[0].error = exc
                return None
            log.error("ledger write failed", extra={"cause": str(exc)})
            batch[0].error = LedgerError(f"{self._path}: cannot be written: {exc}")
        else:
            for proof in made:
                _tell(proof)
        return None

    async def _probe(self) -> None:
        """Write something, and end what was cut: whoever worked on it was told so, and has given up."""

        def try_writing() -> int:
            self._store.probe()
            return self._store.end_interrupted(self._cut) if self._cut else 0

        try:
            ended = await self._in_thread(try_writing)
        except sqlite3.Error as exc:
            self.health.note(exc)
            return
        self._cut.clear()
        if ended:
            log.warning("contracts cut by the disk", extra={"count": ended})
        self.health.healed()

    async def _finish(self) -> None:
        """Write what still waits and close: a posting that was accepted is never dropped."""
        self._is_open = False
        self._send.close()
        async with self._writer:
            waiting = [posting async for posting in self._receive]
            if waiting:
                await self._write(waiting)
            await self._in_thread(self._store.close)


def _tell(proof: Proof) -> None:
    # Counted where it is kept: GET /api/v1/ledger shows the number.
    log.warning("equivocation proved", extra={"peer": peer_id_to_text(proof.offender), "kind": proof.slot.kind})
