"""The ledger for trio: one writer that commits what waits together, and reads that never block the loop.

A posting is durable when ``post`` returns: write to disk, then send. A caller that is cancelled meanwhile does
not know the outcome; posting the same message again is one entry.
"""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from node.errors import LedgerError
from node.ledger.audit import Audit, audit_file
from node.ledger.books import ListedEntry, PeerAccount, count_proofs, entries_after, peer_accounts, proofs
from node.ledger.disk import Disk, FileDisk
from node.ledger.entries import ContractRow, Entry, StoredMessage, StoredProof, Totals
from node.ledger.store import LedgerStore
from protocol.envelope import Envelope
from protocol.equivocation import Proof
from protocol.identity import peer_id_to_text
from protocol.units import MessageId, Microcredits, PeerId, UnixMs

log = logging.getLogger(__name__)

# Waiting postings; the next caller waits. Far above what one process can have in flight.
QUEUE_MAX: Final = 256
# Commits share one fsync: 50 jobs at once would otherwise queue for 50 of them at every step.
BATCH_MAX: Final = 64

T = TypeVar("T")


@dataclass(slots=True)
class _Posting:
    entries: tuple[Entry, ...]
    row: ContractRow | None
    done: trio.Event = field(default_factory=trio.Event)
    error: LedgerError | None = None


class Ledger:
    """Open with ``await nursery.start(ledger.run)``; post and read until that is cancelled."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        """``disk`` is the machine's own unless a simulation brings another."""
        self._path = path
        self._disk = FileDisk(path) if disk is None else disk
        self._store = LedgerStore(path, self._disk)
        self._audits = trio.CapacityLimiter(1)
        self._send, self._receive = trio.open_memory_channel[_Posting](QUEUE_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled; what was accepted before is still written. Raises: LedgerError (cannot open)."""
        await self._in_thread(self._store.open)
        try:
            ended = await self._read(self._store.end_interrupted)
            if ended:
                log.warning("contracts interrupted by the last stop", extra={"count": ended})
            task_status.started()
            async for first in self._receive:
                batch = [first]
                while len(batch) < BATCH_MAX:
                    try:
                        batch.append(self._receive.receive_nowait())
                    except trio.WouldBlock:
                        break
                with trio.CancelScope(shield=True):
                    await self._in_thread(self._write_batch, batch)
                for posting in batch:
                    posting.done.set()
        finally:
            with trio.CancelScope(shield=True):
                await self._finish()

    async def post(self, *entries: Entry, row: ContractRow | None = None) -> None:
        """Write messages and where their contract stands; durable on return. Raises: LedgerError."""
        posting = _Posting(entries, row)
        try:
            try:
                self._send.send_nowait(posting)
            except trio.WouldBlock:
                # Shielded: a caller that is cancelled here has counted the message already, and says it only once.
                with trio.CancelScope(shield=True):
                    await self._send.send(posting)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as exc:
            raise LedgerError(f"{self._path}: the ledger is closed") from exc
        await posting.done.wait()
        if posting.error is not None:
            raise posting.error

    async def witness(self, envelope: Envelope, at_ms: UnixMs) -> None:
        """Keep the proof that a message which we refused makes with one of its signer's that we hold, if it does.

        Raises: LedgerError.
        """
        proof = await self._read(lambda: self._store.witness(envelope, at_ms))
        if proof is not None:
            _tell(proof)

    async def contracts(self, limit: int) -> list[ContractRow]:
        """Return the newest contracts first."""
        return await self._read(lambda: self._store.contracts(limit))

    async def messages(self, prefix: str) -> tuple[ContractRow, list[StoredMessage]] | None:
        """Return the one contract whose id begins with these hex digits, and its messages."""

        def find() -> tuple[ContractRow, list[StoredMessage]] | None:
            row = self._store.find_contract(prefix)
            return None if row is None else (row, self._store.messages(row))

        return await self._read(find)

    async def knows(self, contract_id: MessageId) -> bool:
        """Return whether this contract was ever entered, before a restart too."""
        return await self._read(lambda: self._store.knows(contract_id))

    async def totals(self) -> Totals:
        return await self._read(self._store.totals)

    async def debts(self) -> dict[PeerId, Microcredits]:
        """Return what each requester left unpaid."""
        return await self._read(self._store.debts)

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
            raise LedgerError(f"{self._path}: cannot be read: {exc}") from exc

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await self._disk.run(partial(call, *args))

    def _write_batch(self, batch: list[_Posting]) -> None:
        try:
            made = self._store.write(
                [entry for posting in batch for entry in posting.entries],
                [posting.row for posting in batch if posting.row is not None],
            )
        except sqlite3.Error as exc:
            if len(batch) > 1:
                # One bad posting must not fail its neighbours; a full disk fails each of them again.
                for posting in batch:
                    self._write_batch([posting])
                return
            log.error("ledger write failed", extra={"cause": str(exc)})
            batch[0].error = LedgerError(f"{self._path}: cannot be written: {exc}")
        else:
            for proof in made:
                _tell(proof)

    async def _finish(self) -> None:
        """Write what still waits and close: a posting that was accepted is never dropped."""
        self._send.close()
        waiting = [posting async for posting in self._receive]
        if waiting:
            await self._in_thread(self._write_batch, waiting)
        for posting in waiting:
            posting.done.set()
        await self._in_thread(self._store.close)


def _tell(proof: Proof) -> None:
    # Counted where it is kept: GET /api/v1/ledger shows the number.
    log.warning("equivocation proved", extra={"peer": peer_id_to_text(proof.offender), "kind": proof.slot.kind})
