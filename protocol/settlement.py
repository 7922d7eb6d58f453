"""Settlement bundles: a pair's statements as JSON that anybody checks without a daemon (spec 09, section 7).

``{"settlement": number of the last statement, "network": hex, "messages": [{"type", "envelope": hex}, …]}``.
A bundle may begin later than statement 1: then what was before its first statement is both parties' word.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from protocol.envelope import NETWORK_BYTES
from protocol.errors import Reason, RemoteProtocolError
from protocol.evidence import BUNDLE_BYTES_MAX, MESSAGES_MAX, BundleMessage
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.statement import Chain, Parties, Settled, Statement, head_of
from protocol.units import NetworkId, PeerId

SETTLEMENT_TYPES: Final[tuple[type[SignedMessage], ...]] = (Statement, Settled)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    settlement: Annotated[int, Meta(ge=1, le=1 << 32)]
    network: Annotated[str, Meta(min_length=64, max_length=64)]
    messages: Annotated[tuple[BundleMessage, ...], Meta(max_length=MESSAGES_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedChain:
    """What a bundle proves: both keys signed every statement, and each follows from the one before."""

    network: NetworkId
    first_number: int
    """Of the earliest statement in it."""
    last: Statement
    statements: int


def is_settlement(value: object) -> bool:
    """Return whether decoded JSON calls itself a settlement bundle."""
    return isinstance(value, dict) and "settlement" in value


def encode_settlement(number: int, network: NetworkId, envelopes: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the JSON that ``verify_settlement_untrusted`` reads, of (type, envelope) in the ledger's order."""
    messages = [{"type": kind, "envelope": raw.hex()} for kind, raw in envelopes]
    return json.dumps({"settlement": number, "network": network.hex(), "messages": messages}).encode()


def verify_settlement_untrusted(data: bytes) -> VerifiedChain:
    """Return what the bundle proves; raises nothing but ``RemoteProtocolError``, which says what does not hold."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise RemoteProtocolError(f"a bundle of {len(data)} bytes", reason=Reason.SIZE)
    try:
        file = msgspec.json.decode(data, type=_File)
        network = NetworkId(bytes.fromhex(file.network))
        if len(network) != NETWORK_BYTES:
            raise ValueError(f"a network id has {NETWORK_BYTES} bytes")
        raws = [bytes.fromhex(item.envelope) for item in file.messages]
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"not a settlement bundle: {exc}", reason=Reason.ENCODING) from exc
    chain = _judge_untrusted([read_untrusted(raw, network=network, allowed=SETTLEMENT_TYPES) for raw in raws])
    last, first_number, statements = chain
    if last.number != file.settlement:
        raise _broken(f"the bundle says {file.settlement} statements, its last signed by both is {last.number}")
    return VerifiedChain(network=network, first_number=first_number, last=last, statements=statements)


def _judge_untrusted(messages: list[Signed[SignedMessage]]) -> tuple[Statement, int, int]:
    """Return the last statement, the first one's number and how many; raises ``RemoteProtocolError`` alone."""
    statements = [Signed(it.message, it.envelope) for it in messages if isinstance(it.message, Statement)]
    if len(statements) < 2:
        raise _broken("the bundle has no statement that both signed")
    begin = statements[0].message
    if not begin.first < begin.second:
        raise _broken("the parties of the statement are out of order")
    chain = Chain(parties=Parties(first=PeerId(begin.first), second=PeerId(begin.second)))
    # Payments are cumulative: whichever came last bears every statement out.
    for message in messages:
        if isinstance(message.message, Settled):
            chain.take_untrusted(message)
    rest = statements
    if begin.number > 1:
        one, other, *rest = statements
        if one.envelope.body != other.envelope.body or {one.signer, other.signer} != {begin.first, begin.second}:
            raise _broken(f"statement {begin.number} lacks one of its two signatures")
        chain.head = head_of(one)
    for statement in rest:
        chain.take_untrusted(statement)
    last = chain.head.statement
    if last is None:
        raise _broken("the bundle has no statement that both signed")
    return last, begin.number, last.number - begin.number + 1


def _broken(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=Reason.MEANING)
