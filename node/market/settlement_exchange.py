"""Exchanges of tallies and statements with peers on ``/souk/control/1`` (spec 09, section 6).

Every message is in the ledger before it leaves: a crash at any point leaves what the next exchange goes on with.
How payments come in is ``settlement.py``'s; what may be signed is ``protocol/statement.py``'s.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from node.errors import LedgerError, NodeError, TransportError
from node.ledger.settlement import NO_JOB, PairBooks
from node.market.party import Line, Party
from node.market.settlement import Means, SettlementError
from node.net.interface import Network, Stream
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import CONTROL_PROTOCOL, EnvelopeFrame
from protocol.identity import peer_id_to_text
from protocol.signed import Signed, SignedMessage
from protocol.statement import (
    Settled,
    Statement,
    Tally,
    agreed,
    check_settled_untrusted,
    check_statement_untrusted,
    check_tally_untrusted,
    head_of,
    next_statement,
)
from protocol.units import Microcredits, PeerId

log = logging.getLogger(__name__)

EXCHANGE_S: Final = 30.0
NOTHING: Final = Microcredits(0)
GAP_S: Final = 1.0
"""Between two exchanges that one peer opens: each may add two entries to a ledger, for a microcredit of change."""
STATEMENTS_MAX: Final = 2
"""In one exchange: one that a crash left unfinished, and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where a pair stands after an exchange; sums are cumulative µc."""

    peer_id: PeerId
    number: int
    """Of the last statement that both signed; 0 for none."""
    statements: int
    """How many this exchange added."""
    earned: Microcredits
    promised: Microcredits
    received: Microcredits
    """Settled of what the peer promised us."""
    paid: Microcredits
    """Settled of what we promised the peer."""
    acknowledged: Microcredits
    """What we now acknowledged as paid by other means, by this call."""


class Settler:
    """Settles with peers, one exchange a peer at a time. Attach it before the network runs."""

    def __init__(
        self,
        party: Party,
        network: Network,
        means: Means,
        *,
        every_s: float,
        on_settled: Callable[[PeerId, Microcredits], None],
    ) -> None:
        """``on_settled`` hears, after each statement, how much of a peer's promises to us is settled in all."""
        self._party = party
        self._network = network
        self._means = means
        self._every_s = every_s
        self._on_settled = on_settled
        self._busy: set[PeerId] = set()
        self._heard: dict[PeerId, float] = {}
        self._seen: dict[PeerId, tuple[int, int]] = {}
        self._left_to_first: set[PeerId] = set()

    def attach(self) -> None:
        self._network.serve(CONTROL_PROTOCOL, self._serve)

    async def run(self) -> None:
        """Propose statements to connected peers with whom something changed, one after the other."""
        while self._every_s > 0:
            await trio.sleep(self._every_s)
            try:
                await self._pass()
            except LedgerError as exc:
                log.warning("settlement put off", extra={"cause": str(exc)})

    async def _pass(self) -> None:
        accounts = {it.peer_id: (it.earned, it.spent) for it in await self._party.ledger.peer_accounts()}
        for peer_id in sorted(self._network.connected_peers() & accounts.keys()):
            if self._seen.get(peer_id) == accounts[peer_id]:
                continue
            # The second leaves a pass to the first: on one beat, both would open and refuse each other for ever.
            if self._party.peer_id > peer_id and peer_id not in self._left_to_first:
                self._left_to_first.add(peer_id)
                continue
            self._left_to_first.discard(peer_id)
            books = await self._books(peer_id)
            if books.unfinished is None and books.head.sums == books.sums:
                # The other one has opened meanwhile.
                self._seen[peer_id] = accounts[peer_id]
                continue
            try:
                await self.settle(peer_id)
            except (SettlementError, TransportError) as exc:
                log.info("not settled", extra={"peer": peer_id_to_text(peer_id), "cause": str(exc)})
            else:
                self._seen[peer_id] = accounts[peer_id]

    async def settle(self, peer_id: PeerId, told: Microcredits = NOTHING) -> Outcome:
        """Propose a statement now; ``told`` µc were paid to us by the operator's word.

        What was acknowledged stays so when the peer cannot be reached: the next exchange carries it.

        Raises: SettlementError, TransportError, LedgerError.
        """
        if peer_id == self._party.peer_id:
            raise SettlementError("this is our own peer id: there is nothing to settle with ourselves")
        with self._alone(peer_id):
            before = await self._books(peer_id)
            after = await self._acknowledge(before, told)
            growth = _cumulative(after.acknowledged) - _cumulative(before.acknowledged)
            try:
                with trio.fail_after(EXCHANGE_S):
                    statements = await self._open(peer_id)
            except trio.TooSlowError as exc:
                raise SettlementError(_kept(f"the peer did not answer within {EXCHANGE_S:.0f} s", growth)) from exc
            except RemoteProtocolError as exc:
                raise SettlementError(_kept(f"the peer broke the protocol: {exc}", growth)) from exc
            except TransportError as exc:
                cause = f"the peer could not be reached, or refused ({exc}); its log says why"
                raise SettlementError(_kept(cause, growth)) from exc
            return _outcome(await self._books(peer_id), statements, Microcredits(growth))

    async def _open(self, peer_id: PeerId) -> int:
        """Raises: RemoteProtocolError, TransportError, LedgerError, SettlementError."""
        async with await self._network.open_stream(peer_id, CONTROL_PROTOCOL) as stream:
            line = Line(stream, self._party)
            await self._send_tally(line, await self._books(peer_id))
            tally = await self._hear_tally(line)
            return await self._exchange(line, tally)

    async def _serve(self, stream: Stream) -> None:
        line = Line(stream, self._party)
        try:
            # Before it counts as under way: whoever asks twice in a row finds the first exchange ended.
            await self._keep_gap(line.peer_id)
            with self._alone(line.peer_id), trio.fail_after(EXCHANGE_S):
                tally = await self._hear_tally(line)
                books = await self._acknowledge(await self._books(line.peer_id), NOTHING)
                await self._send_tally(line, books)
                await self._exchange(line, tally)
        except (RemoteProtocolError, NodeError, trio.TooSlowError) as exc:
            extra = {"peer": peer_id_to_text(line.peer_id), "cause": str(exc), "reason": _reason(exc)}
            log.info("settlement broken off", extra=extra)
            await stream.reset()

    # One exchange.

    async def _exchange(self, line: Line, tally: Signed[Tally]) -> int:
        """Sign what there is to be signed, and return how many statements became whole.

        Raises: RemoteProtocolError, StreamLostError, LedgerError, SettlementError.
        """
        books = await self._books(line.peer_id)
        if self._party.peer_id == books.parties.first:
            return await self._sign_first(line, books, tally)
        return await self._sign_second(line)

    async def _sign_first(self, line: Line, books: PairBooks, tally: Signed[Tally]) -> int:
        """Send the statement that is unfinished, then the next one. Raises: as ``_exchange``."""
        theirs, unfinished = tally.message, books.unfinished
        heads = [(books.head.number, books.head.hash)]
        if unfinished is not None:
            heads.append((unfinished.message.number, head_of(unfinished).hash))
        if (theirs.number, theirs.last) not in heads:
            raise SettlementError(
                f"the peer holds statement {theirs.number}, this ledger {books.head.number}, and they do not"
                " belong together: is one of the two an old copy? Nothing was signed"
            )
        done = 0
        if unfinished is not None:
            books = await self._complete(line, unfinished)
            done += 1
        sums = agreed(books.sums, theirs, line.peer_id)
        made = next_statement(books.parties, books.head, sums, now_ms=self._party.now_ms())
        if made is not None:
            signed = self._party.sign(made)
            await self._post(line.peer_id, signed)
            await self._complete(line, signed)
            done += 1
        await line.finish()
        await self._await_end(line)
        return done

    async def _complete(self, line: Line, ours: Signed[Statement]) -> PairBooks:
        """Get the second signature under a statement that the ledger holds with ours. Raises: as ``_exchange``."""
        await line.tell(ours)
        theirs = await line.hear_untrusted(Statement)
        if theirs.envelope.body != ours.envelope.body:
            raise RemoteProtocolError("statement: another one came back", reason=Reason.MEANING)
        return await self._enter_whole(line.peer_id, theirs)

    async def _sign_second(self, line: Line) -> int:
        """Countersign what the first sends, until its end mark. Raises: as ``_exchange``."""
        done = 0
        for _ in range(STATEMENTS_MAX):
            frame = await line.receive_untrusted()
            if frame is None:
                break
            if not isinstance(frame, EnvelopeFrame):
                raise RemoteProtocolError("expected a statement, got another frame", reason=Reason.ORDER)
            statement = line.read_untrusted(frame, Statement)
            ours, is_new = await self._countersign(line.peer_id, statement)
            await line.tell(ours)
            done += is_new
        else:
            await self._await_end(line)
        await line.finish()
        return done

    async def _countersign(self, peer_id: PeerId, theirs: Signed[Statement]) -> tuple[Signed[Statement], bool]:
        """Return our signature under the first's statement, and whether it is a new one.

        Raises: RemoteProtocolError (it does not follow, or exceeds our books), LedgerError.
        """
        books = await self._books(peer_id)
        if books.own is not None and books.own.envelope.body == theirs.envelope.body:
            return books.own, False
        try:
            check_statement_untrusted(theirs.message, books.parties, books.head, books.sums)
        except RemoteProtocolError:
            # A second statement of one number convicts its signer.
            await self._party.ledger.witness(theirs.envelope, self._party.now_ms())
            raise
        ours = self._party.sign(theirs.message)
        await self._enter_whole(peer_id, theirs, ours)
        return ours, True

    # What both sides do.

    async def _send_tally(self, line: Line, books: PairBooks) -> None:
        if books.acknowledged is not None:
            await line.tell(books.acknowledged)
        tally = Tally(
            first=books.parties.first,
            second=books.parties.second,
            number=books.head.number,
            last=books.head.hash,
            earned=books.earned,
            promised=books.promised,
            acknowledged=_cumulative(books.acknowledged),
        )
        await line.tell(self._party.sign(tally))

    async def _hear_tally(self, line: Line) -> Signed[Tally]:
        """Return the peer's tally once its last acknowledgement is in the ledger.

        Raises: RemoteProtocolError, StreamLostError, LedgerError.
        """
        heard = await line.hear_untrusted(Settled, Tally)
        if isinstance(heard.message, Settled):
            await self._hear_settled(line.peer_id, Signed(heard.message, heard.envelope))
            heard = await line.hear_untrusted(Tally)
        assert isinstance(heard.message, Tally)
        books = await self._books(line.peer_id)
        check_tally_untrusted(heard.message, books.parties, _cumulative(books.paid))
        return Signed(heard.message, heard.envelope)

    async def _hear_settled(self, peer_id: PeerId, settled: Signed[Settled]) -> None:
        """Raises: RemoteProtocolError (not for us, nothing to pay, or it takes back), LedgerError."""
        books = await self._books(peer_id)
        last = books.paid
        if last is not None and last.message_id == settled.message_id:
            return
        if not books.promised:
            # Strangers could fill the disk with thanks for what nobody gave them.
            raise RemoteProtocolError("settled: nothing was ever promised to its signer", reason=Reason.MEANING)
        try:
            payer = self._party.peer_id
            check_settled_untrusted(settled.message, payer=payer, last=None if last is None else last.message)
        except RemoteProtocolError:
            await self._party.ledger.witness(settled.envelope, self._party.now_ms())
            raise
        await self._post(peer_id, settled)

    async def _acknowledge(self, books: PairBooks, told: Microcredits) -> PairBooks:
        """Sign what has come in, if it is more than before. Raises: SettlementError, LedgerError."""
        cumulative = await self._means.received(books, told)
        if cumulative <= _cumulative(books.acknowledged):
            return books
        number = 1 if books.acknowledged is None else books.acknowledged.message.number + 1
        settled = Settled(
            payer=books.peer_id, number=number, cumulative=cumulative, made_at_ms=self._party.now_ms()
        )
        await self._post(books.peer_id, self._party.sign(settled))
        return await self._books(books.peer_id)

    async def _enter_whole(self, peer_id: PeerId, *signatures: Signed[Statement]) -> PairBooks:
        """Enter what makes a statement whole, and tell of it. Raises: LedgerError."""
        # Shielded: what the ledger has and admission has not would limit an honest peer until the next statement.
        with trio.CancelScope(shield=True):
            await self._post(peer_id, *signatures)
            books = await self._books(peer_id)
        self._on_settled(peer_id, books.received)
        log.info("settled", extra={"peer": peer_id_to_text(peer_id), "number": books.head.number})
        return books

    async def _post(self, peer_id: PeerId, *messages: Signed[SignedMessage]) -> None:
        entries = [self._party.entry(it, NO_JOB, peer_id, contract_id=None) for it in messages]
        await self._party.ledger.post(*entries)

    async def _books(self, peer_id: PeerId) -> PairBooks:
        return await self._party.ledger.pair_books(self._party.peer_id, peer_id)

    async def _await_end(self, line: Line) -> None:
        """Raises: RemoteProtocolError (something comes after the last word), StreamLostError."""
        if await line.receive_untrusted() is not None:
            raise RemoteProtocolError("a frame where the end was expected", reason=Reason.ORDER)

    async def _keep_gap(self, peer_id: PeerId) -> None:
        """Wait until this peer's last exchange is ``GAP_S`` ago."""
        now = trio.current_time()
        self._heard = {peer: at for peer, at in self._heard.items() if at > now - GAP_S}
        at = self._heard.get(peer_id, -GAP_S) + GAP_S
        self._heard[peer_id] = max(at, now)
        await trio.sleep_until(max(at, now))

    @contextmanager
    def _alone(self, peer_id: PeerId) -> Iterator[None]:
        """Raises: SettlementError (an exchange with this peer is under way)."""
        if peer_id in self._busy:
            raise SettlementError("an exchange with this peer is under way: try again in a moment")
        self._busy.add(peer_id)
        try:
            yield
        finally:
            self._busy.discard(peer_id)


def _outcome(books: PairBooks, statements: int, growth: Microcredits) -> Outcome:
    return Outcome(
        peer_id=books.peer_id,
        number=books.head.number,
        statements=statements,
        earned=books.earned,
        promised=books.promised,
        received=books.received,
        paid=books.settled_by_us,
        acknowledged=growth,
    )


def _kept(cause: str, growth: int) -> str:
    if not growth:
        return f"{cause}; nothing new was settled"
    return f"{cause}; the {growth} µc are acknowledged all the same, and the next exchange carries that"


def _cumulative(settled: Signed[Settled] | None) -> int:
    return 0 if settled is None else settled.message.cumulative


def _reason(exc: Exception) -> str:
    return str(exc.reason) if isinstance(exc, RemoteProtocolError) else "none"
