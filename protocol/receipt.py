"""Receipt and closing: the provider's signed result record, the requester's signed verdict (spec 03, 9 and 10)."""

from typing import ClassVar, Literal

from protocol.fields import DurationMs, Hash, Label, Money, SomeTokens, TimeMs, Tokens
from protocol.signed import SignedMessage
from protocol.task import FinishReason

ReceiptStatus = Literal["complete", "partial", "failed"]
Verdict = Literal["ok", "partial", "bad", "late"]


class Receipt(SignedMessage, frozen=True, kw_only=True):
    """What was run, on what, and what it cost: the last word of the provider about a contract."""

    kind: ClassVar[str] = "receipt"

    contract_id: Hash
    status: ReceiptStatus
    finish: FinishReason | None = None
    tokens_in: SomeTokens
    tokens_out: Tokens
    duration_ms: DurationMs
    cumulative: Money
    output_hash: Hash
    model_id: Hash
    profile: Label
    started_at_ms: TimeMs
    ended_at_ms: TimeMs


class Closing(SignedMessage, frozen=True, kw_only=True):
    """The requester's verdict on a receipt; with it the contract is over for both."""

    kind: ClassVar[str] = "closing"

    contract_id: Hash
    receipt_id: Hash
    verdict: Verdict
    cumulative: Money
