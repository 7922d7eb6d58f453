"""A provider's contract after its job is over, from the books alone: late vouchers and closings are still taken.

A requester that lost its stream, or was stopped, brings here what it had signed (spec 03, section 12).
"""

from dataclasses import dataclass, replace
from typing import Final

import trio

from node.ledger.entries import ContractRow
from node.market.party import Line, Party
from protocol.account import ProviderAccount
from protocol.contract import Accept, Cancel, Contract
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import EnvelopeFrame
from protocol.receipt import Closing, Receipt
from protocol.resume import Resume, resume_of_provider
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.states import ProviderState, is_final
from protocol.units import MessageId, Microcredits
from protocol.voucher import Meter, Voucher

LATE_WAIT_S: Final = 10.0
"""How long the requester may take to bring what it has."""


class LateContract:
    """One contract as it was left."""

    def __init__(self, party: Party, line: Line) -> None:
        self._party = party
        self._line = line
        self.promised = Microcredits(0)
        """What late vouchers added to a contract of which nothing but vouchers is owed."""

    async def serve(self, resume: Resume) -> None:
        """Answer a requester that resumes a contract which no job of ours works on any more.

        ``promised`` may grow meanwhile, also when this raises.

        Raises: RemoteProtocolError, StreamLostError, LedgerError, TooSlowError.
        """
        contract_id = MessageId(resume.contract_id)
        with trio.fail_after(LATE_WAIT_S):
            found = await self._party.ledger.messages(contract_id.hex())
            if found is None or found[0].role != "provider" or found[0].peer_id != self._line.peer_id:
                await self._say_unknown(contract_id)
                return
            row, stored = found
            messages: list[Signed[SignedMessage]] = [
                read_untrusted(it.raw, network=self._party.network, allowed=KEPT)
                for it in stored
                if it.kind in KEPT_KINDS
            ]
            account = _account_of(contract_id, messages)
            if account is None:
                await self._say_unknown(contract_id)
                return
            receipt = next(
                (Signed(it.message, it.envelope) for it in messages if isinstance(it.message, Receipt)), None
            )
            own = resume_of_provider(contract_id, account, is_over=True)
            await self._line.tell(self._party.sign(own))
            if receipt is not None and resume.standing != "over":
                await self._line.tell(receipt)
            closing = next((it for it in messages if isinstance(it.message, Closing)), None)
            await self._take(_Books(row=row, account=account, receipt=receipt, closing=closing))
            await self._line.finish()

    async def _say_unknown(self, contract_id: MessageId) -> None:
        own = Resume(contract_id=contract_id, standing="unknown", frames=0, meter=0, voucher=0)
        await self._line.tell(self._party.sign(own))
        await self._line.finish()

    async def _take(self, books: "_Books") -> None:
        """Write down all that the requester brings, together, before our end mark says so."""
        heard: list[Signed[SignedMessage]] = []
        try:
            while (frame := await self._line.receive_untrusted()) is not None:
                if not isinstance(frame, EnvelopeFrame):
                    continue
                signed: Signed[SignedMessage] = self._line.read_untrusted(frame, Voucher, Closing, Cancel)
                if await self._check(signed, books):
                    heard.append(signed)
        finally:
            # What was good before the stream was lost, or a rule broken, holds.
            if heard:
                with trio.CancelScope(shield=True):
                    await self._store(books, heard)

    async def _check(self, signed: Signed[SignedMessage], books: "_Books") -> bool:
        """Return whether this belongs into the books. Raises: RemoteProtocolError, LedgerError."""
        try:
            match signed.message:
                case Closing() if books.closing is not None and signed.message_id == books.closing.message_id:
                    return False  # its signer did not hear that it arrived
                case Voucher() | Closing() if books.closing is not None:
                    # The closing names the sum of all vouchers: with more of them, no third party could follow.
                    raise RemoteProtocolError(f"{signed.envelope.kind}: behind the closing", reason=Reason.ORDER)
                case Voucher() as voucher:
                    books.account.voucher_untrusted(voucher)
                case Closing() as closing if books.receipt is not None:
                    books.account.closing_untrusted(closing, books.receipt.message_id)
                    books.closing = signed
                case _:
                    return False  # a cancel of what is over
        except RemoteProtocolError:
            await self._party.ledger.witness(signed.envelope, self._party.now_ms())
            raise
        return True

    async def _store(self, books: "_Books", heard: list[Signed[SignedMessage]]) -> None:
        row, vouchered = books.row, books.account.vouchered
        entries = [
            self._party.entry(signed, row.job_id, row.peer_id, contract_id=row.contract_id) for signed in heard
        ]
        await self._party.ledger.post(*entries, row=replace(row, vouchered=vouchered))
        self._party.metrics.earned.inc(vouchered - row.vouchered)
        if row.state is ProviderState.FAILED or not is_final(row.state):
            # Where we failed, what was metered is no debt, and only vouchers count; elsewhere it was counted.
            self.promised = Microcredits(vouchered - row.vouchered)


@dataclass(slots=True, kw_only=True)
class _Books:
    """What is known of the contract."""

    row: ContractRow
    account: ProviderAccount
    receipt: Signed[Receipt] | None
    closing: Signed[SignedMessage] | None
    """The one that holds: nothing is taken behind it."""


KEPT: Final[tuple[type[SignedMessage], ...]] = (Contract, Accept, Meter, Voucher, Receipt, Closing)
KEPT_KINDS: Final = frozenset(it.kind for it in KEPT)


def _account_of(contract_id: MessageId, messages: list[Signed[SignedMessage]]) -> ProviderAccount | None:
    """Return the account as far as vouchers go; None for a contract that was declined."""
    contract = next((it.message for it in messages if isinstance(it.message, Contract)), None)
    accept = next((it.message for it in messages if isinstance(it.message, Accept)), None)
    if contract is None or accept is None:
        return None
    # The salt chains output, and there is none to come.
    account = ProviderAccount(contract_id, contract, salt=b"", tokens_in=accept.tokens_in)
    account.restore(
        (it.message for it in messages if isinstance(it.message, Meter)),
        (it.message for it in messages if isinstance(it.message, Voucher)),
    )
    return account
