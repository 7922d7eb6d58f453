"""Meters and vouchers: the provider's running account, the requester's running promise (spec 03, 7 and 8; 05)."""

from typing import Annotated, ClassVar

from msgspec import Meta

from protocol.fields import DurationMs, Hash, Money, SomeTokens, Tokens
from protocol.signed import SignedMessage

Ordinal = Annotated[int, Meta(ge=1, le=1 << 32)]


class Meter(SignedMessage, frozen=True, kw_only=True):
    """What has been delivered so far, as the provider counts. Numbers are cumulative."""

    kind: ClassVar[str] = "meter"

    contract_id: Hash
    number: Ordinal
    tokens_in: SomeTokens
    tokens_out: Tokens
    duration_ms: DurationMs
    cumulative: Money
    output_hash: Hash
    """The chain over every output frame sent so far."""
    final: bool


class Voucher(SignedMessage, frozen=True, kw_only=True):
    """A promise to pay ``cumulative`` microcredits for this contract in all: the highest one counts."""

    kind: ClassVar[str] = "voucher"

    contract_id: Hash
    number: Ordinal
    cumulative: Money
    meter: Ordinal
    """Number of the meter that it accepts."""
