"""Adverts: what a node says it can do, signed, with an end (spec 06).

An advert is a hint about the node and a standing offer at its prices. Nothing follows from one until the node
itself has answered on an authenticated stream.
"""

from typing import Annotated, ClassVar, Final

from msgspec import Meta

from protocol import limits
from protocol.errors import Reason, RemoteProtocolError
from protocol.fields import (
    Address,
    Bytes,
    Count,
    Dtype,
    DurationMs,
    Hash,
    Label,
    Money,
    Name,
    Task,
    TimeMs,
    Tokens,
)
from protocol.price import Prices
from protocol.schema import Message
from protocol.signed import SignedMessage
from protocol.units import UnixMs

PROTOCOL_VERSION: Final = 1


class DeviceClaim(Message, frozen=True, kw_only=True):
    """A device as the node measured it at start. Memory is rounded down to whole MiB, free memory to GiB."""

    device: Annotated[str, Meta(pattern=r"^(cuda|cpu)\Z")]
    name: Label
    architecture: Label
    memory_total_bytes: Bytes
    memory_free_bytes: Bytes
    dtypes: Annotated[tuple[Dtype, ...], Meta(max_length=4)]
    matmul_gflops: Count | None = None
    read_mb_per_s: Count | None = None


class Offer(Message, frozen=True, kw_only=True):
    """One model that answers now, at these prices."""

    model_id: Hash
    name: Name
    task: Task
    dtype: Dtype
    context_tokens: Tokens
    prices: Prices
    tokens_per_s_milli: Count
    """Decode speed of one sequence as measured, in thousandths of a token per second."""


class Advert(SignedMessage, frozen=True, kw_only=True):
    """A node's capacity at one moment. Of two from one node, the higher ``sequence`` counts."""

    kind: ClassVar[str] = "advert"

    sequence: TimeMs
    issued_at_ms: TimeMs
    expires_at_ms: TimeMs
    versions: Annotated[tuple[Annotated[int, Meta(ge=1, le=255)], ...], Meta(min_length=1, max_length=8)]
    name: Label
    addresses: Annotated[tuple[Address, ...], Meta(max_length=limits.ADDRESSES_MAX)]
    devices: Annotated[tuple[DeviceClaim, ...], Meta(max_length=limits.DEVICES_MAX)]
    offers: Annotated[tuple[Offer, ...], Meta(max_length=limits.MODELS_MAX)]
    slots_total: Count
    slots_free: Count
    queue_ms: DurationMs
    credit: Money
    """What the node lets a peer without history owe, in microcredits."""


def check_life_untrusted(advert: Advert, now_ms: UnixMs) -> None:
    """Refuse, with ``RemoteProtocolError``, an advert that is over, of the future, or lives too long."""
    life_ms = advert.expires_at_ms - advert.issued_at_ms
    if not 0 < life_ms <= limits.ADVERT_LIFE_MS_MAX:
        raise RemoteProtocolError(
            f"advert: a life of {life_ms} ms, expected 1 to {limits.ADVERT_LIFE_MS_MAX}", reason=Reason.TIME
        )
    if advert.issued_at_ms > now_ms + limits.CLOCK_SKEW_MS_MAX:
        raise RemoteProtocolError(
            f"advert: issued {advert.issued_at_ms - now_ms} ms in the future", reason=Reason.TIME
        )
    if advert.expires_at_ms <= now_ms:
        raise RemoteProtocolError(f"advert: expired {now_ms - advert.expires_at_ms} ms ago", reason=Reason.TIME)
