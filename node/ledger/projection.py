"""What the signed messages of one contract say about it, and how its row in the ledger compares. No SQL here.

The row is a cache of sums: everything in it that somebody signed is derived here a second time. Not signed, and so
taken from the row: the model's name, and which of several ends a contract came to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from node.ledger.entries import ContractRow, Role
from protocol.contract import Accept, Cancel, Contract
from protocol.equivocation import Slot, slot_of
from protocol.offer import Decline
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage
from protocol.states import ProviderState, RequesterState
from protocol.units import JobId, MessageId, Microcredits, ModelId, NetworkId, PeerId, UnixMs
from protocol.voucher import Meter, Voucher

MODEL_NAME_UNKNOWN = 12
"""So many hex digits of its id stand for a model whose name is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that does not hold: where, what about it, and both values as text."""

    where: str
    field: str
    stored: str
    expected: str


@dataclass(slots=True, kw_only=True)
class Tally:
    """Takes a contract's messages one by one, in the order of the ledger."""

    contract_id: MessageId
    peer_id: PeerId
    """The other party, as the entries note it."""
    network: NetworkId
    contract: Contract | None = None
    accept: Accept | None = None
    last_meter: Meter | None = None
    last_voucher: Voucher | None = None
    receipt: Receipt | None = None
    closing: Closing | None = None
    cancel: Cancel | None = None
    is_declined: bool = False
    problems: list[Difference] = field(default_factory=list)
    _taken: set[Slot] = field(default_factory=set)

    @property
    def where(self) -> str:
        return f"contract {self.contract_id.hex()}"

    def take(self, signed: Signed[SignedMessage], network: NetworkId) -> None:
        """Count a verified message in; what does not belong to this contract becomes a problem."""
        if network != self.network:
            self._mismatch(f"{signed.envelope.kind} network", network.hex(), self.network.hex())
        self._check_place(signed)
        slot = slot_of(signed.envelope)
        if slot is not None and slot in self._taken:
            return  # the first one counts; the second is a proof against its signer
        if slot is not None:
            self._taken.add(slot)
        self._count(signed.message)

    def _count(self, message: SignedMessage) -> None:
        match message:
            case Contract():
                self.contract = message
            case Accept():
                self.accept = message
            case Meter() if self.last_meter is None or message.number > self.last_meter.number:
                self.last_meter = message
            case Voucher() if self.last_voucher is None or message.number > self.last_voucher.number:
                self.last_voucher = message
            case Receipt():
                self.receipt = message
            case Closing():
                self.closing = message
            case Cancel():
                self.cancel = message
            case Decline():
                self.is_declined = True
            case _:
                pass

    def _check_place(self, signed: Signed[SignedMessage]) -> None:
        message, kind = signed.message, signed.envelope.kind
        match message:
            case Contract():
                named = signed.message_id
            case Accept() | Meter() | Voucher() | Receipt() | Closing() | Cancel():
                named = MessageId(message.contract_id)
            case Decline():
                named = MessageId(message.refers_to)
            case _:
                self._mismatch("message type", kind, "one of a contract")
                return
        if named != self.contract_id:
            self._mismatch(f"{kind} contract_id", self.contract_id.hex(), named.hex())
        terms = message if isinstance(message, Contract) else self.contract
        if terms is None:
            self._mismatch(f"{kind} place", "before the contract", "after the contract")
            return
        expected = _signers(message, terms)
        if signed.signer not in expected:
            self._mismatch(f"{kind} signer", signed.signer.hex(), " or ".join(key.hex() for key in expected))

    def _mismatch(self, field_name: str, stored: str, expected: str) -> None:
        self.problems.append(Difference(where=self.where, field=field_name, stored=stored, expected=expected))

    # Read when every message was taken.

    @property
    def role(self) -> Role | None:
        """Return what this node is in the contract; None when the other party noted is in neither role."""
        if self.contract is None:
            return None
        if self.peer_id == self.contract.requester:
            return "provider"
        return "requester" if self.peer_id == self.contract.provider else None

    @property
    def metered(self) -> Microcredits:
        return Microcredits(self.last_meter.cumulative if self.last_meter is not None else 0)

    @property
    def vouchered(self) -> Microcredits:
        return Microcredits(self.last_voucher.cumulative if self.last_voucher is not None else 0)

    def compare(self, row: ContractRow | None) -> list[Difference]:
        """Return what is wrong with the messages, and with the row in their light."""
        found = list(self.problems)
        if self.contract is None:
            return [*found, _difference(self.where, "contract", "missing", "a signed contract")]
        if self.role is None:
            return [*found, _difference(self.where, "peer_id", self.peer_id.hex(), "one of the two parties")]
        if row is None:
            return [*found, _difference(self.where, "row", "missing", "a row")]
        expected = self._row(self.contract, self.role, row)
        for name in ("job_id", "role", "peer_id", "model_id", "tokens_in", "metered", "vouchered", "at_ms"):
            stored, signed = getattr(row, name), getattr(expected, name)
            if stored != signed:
                found.append(_difference(self.where, name, _text(stored), _text(signed)))
        found += self._compare_tokens_out(row, self.contract)
        if self.closing is None and row.state in (ProviderState.CLOSED, RequesterState.CLOSED):
            found.append(_difference(self.where, "state", str(row.state), "another: there is no closing"))
        return found

    def _compare_tokens_out(self, row: ContractRow, contract: Contract) -> Iterator[Difference]:
        """Only a receipt says how many tokens were delivered; before it a row may be ahead of the last meter."""
        if self.receipt is not None:
            if row.tokens_out != self.receipt.tokens_out:
                yield _difference(self.where, "tokens_out", str(row.tokens_out), str(self.receipt.tokens_out))
            return
        least = self.last_meter.tokens_out if self.last_meter is not None else 0
        if not least <= row.tokens_out <= contract.tokens_out_max:
            expected = f"{least} to {contract.tokens_out_max}"
            yield _difference(self.where, "tokens_out", str(row.tokens_out), expected)

    def rebuilt(self, prior: ContractRow | None) -> ContractRow | None:
        """Return the row that the messages give; None without a contract or a party to it.

        The model's name and the state come from ``prior`` where they do not contradict what was signed.
        """
        if self.contract is None or self.role is None:
            return None
        row = self._row(self.contract, self.role, prior)
        difference = next(iter(self._compare_tokens_out(row, self.contract)), None)
        if difference is None:
            return row
        tokens = self.receipt or self.last_meter
        return replace(row, tokens_out=tokens.tokens_out if tokens is not None else 0)

    def _row(self, contract: Contract, role: Role, prior: ContractRow | None) -> ContractRow:
        accepted_at_ms = self.accept.accepted_at_ms if self.accept is not None else contract.made_at_ms
        model_id = ModelId(contract.model_id)
        state = self._end(role)
        if prior is not None and prior.role == role and (self.closing is not None or not _is_closed(prior)):
            state = prior.state
        return ContractRow(
            contract_id=self.contract_id,
            job_id=JobId(contract.job_id),
            role=role,
            peer_id=self.peer_id,
            model_id=model_id,
            model=prior.model if prior is not None else model_id.hex()[:MODEL_NAME_UNKNOWN],
            state=state,
            tokens_in=self.accept.tokens_in if self.accept is not None else 0,
            tokens_out=prior.tokens_out if prior is not None else -1,
            metered=self.metered,
            vouchered=self.vouchered,
            at_ms=UnixMs(accepted_at_ms if role == "provider" else contract.made_at_ms),
            energy_millijoules=prior.energy_millijoules if prior is not None else None,
        )

    def _end(self, role: Role) -> ProviderState | RequesterState:
        """Return where a contract with these messages stands when nobody remembers: as a crash would leave it."""
        if role == "provider":
            match self.receipt, self.closing:
                case _, Closing():
                    return ProviderState.CLOSED
                case Receipt(status="complete"), None:
                    return ProviderState.UNPAID
                case Receipt(status="partial"), None:
                    return ProviderState.CANCELLED
                case _:
                    # Cut short here: our fault, and no debt of the requester's.
                    return ProviderState.FAILED
        if self.is_declined:
            return RequesterState.DECLINED
        if self.cancel is not None:
            return RequesterState.DISPUTED if self.cancel.code == "meter" else RequesterState.CANCELLED
        if self.closing is not None:
            return RequesterState.CLOSED
        return RequesterState.LAPSED if self.accept is None else RequesterState.LOST


def _is_closed(row: ContractRow) -> bool:
    return row.state in (ProviderState.CLOSED, RequesterState.CLOSED)


def _signers(message: SignedMessage, contract: Contract) -> tuple[bytes, ...]:
    match message:
        case Contract() | Voucher() | Closing():
            return (contract.requester,)
        case Cancel():
            return (contract.requester, contract.provider)
        case _:
            return (contract.provider,)


def _difference(where: str, field_name: str, stored: str, expected: str) -> Difference:
    return Difference(where=where, field=field_name, stored=stored, expected=expected)


def _text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
