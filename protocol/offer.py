"""Ask, quote and decline: agreeing on terms before a contract (spec 03, sections 2 to 4)."""

from typing import ClassVar

from protocol.errors import DeclineCode
from protocol.fields import (
    Bytes,
    Dtype,
    DurationMs,
    Hash,
    JobKey,
    Key,
    Label,
    Money,
    SomeTokens,
    Task,
    Text,
    TimeMs,
    Tokens,
)
from protocol.price import Prices
from protocol.signed import SignedMessage


class Ask(SignedMessage, frozen=True, kw_only=True):
    """What a requester wants. It binds nobody; the prompt stays at home."""

    kind: ClassVar[str] = "ask"

    job_id: JobKey
    provider: Key
    """Whom it is put to: an ask shown to somebody else is refused."""
    sent_at_ms: TimeMs
    end_by_ms: TimeMs
    task: Task
    model_id: Hash
    input_bytes: Bytes
    tokens_in_max: SomeTokens
    """An upper bound: only the provider's tokeniser knows the count, and says it in ``accept``."""
    tokens_out_max: SomeTokens
    price_max: Money


class Quote(SignedMessage, frozen=True, kw_only=True):
    """A binding offer: a slot is held for the asker until ``hold_until_ms``."""

    kind: ClassVar[str] = "quote"

    ask_id: Hash
    hold_until_ms: TimeMs
    dtype: Dtype
    profile: Label
    """What will run it, as the receipt will repeat it."""
    prices: Prices
    price_max: Money
    """The most this job can cost at these prices."""
    credit: Money
    """What the provider lets run up between two vouchers."""
    voucher_window_tokens: SomeTokens
    first_token_ms: DurationMs
    """An estimate, queue included; nobody is bound by it."""
    memory_bytes: Bytes | None = None
    """What the job takes of the device at most, as ``accept`` will say it."""


class Decline(SignedMessage, frozen=True, kw_only=True):
    """No, with a reason, and where it helps with what would have been taken."""

    kind: ClassVar[str] = "decline"

    refers_to: Hash
    """The id of the ask or contract that is declined."""
    code: DeclineCode
    message: Text
    retry_after_ms: DurationMs | None = None
    tokens_max: Tokens | None = None
    price_min: Money | None = None
