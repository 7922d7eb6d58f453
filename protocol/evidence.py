"""Portable evidence: one contract's signed messages, judged without a daemon, a network or a database (spec 08).

A bundle is JSON, so that people can mail it: ``{"network": hex, "messages": [{"type", "from", "at_ms",
"envelope": hex}, …]}``. Only the envelopes count; everything else in it is a label.
"""

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from protocol import limits
from protocol.contract import Accept, Cancel, Contract, check_accept_untrusted
from protocol.encoding import Plain, decode_untrusted
from protocol.envelope import NETWORK_BYTES, network_of_untrusted
from protocol.errors import Reason, RemoteProtocolError
from protocol.messages import MESSAGE_TYPES
from protocol.price import cost
from protocol.receipt import Closing, Receipt
from protocol.signed import Signed, SignedMessage, body_untrusted, read_untrusted, require_signer_untrusted
from protocol.units import MessageId, NetworkId, PeerId, UnixMs
from protocol.voucher import Meter, Voucher

BUNDLE_BYTES_MAX: Final = 16 * 1024 * limits.KIB
MESSAGES_MAX: Final = 16_384


Readable: TypeAlias = "bool | int | str | list[Readable] | dict[str, Readable] | None"


class BundleMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message as it travelled; ``sender`` and ``at_ms`` are the storing node's own notes."""

    type: str
    sender: str = msgspec.field(name="from", default="")
    at_ms: int = 0
    envelope: Annotated[str, Meta(max_length=4 * limits.BODY_BYTES_MAX)]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    network: Annotated[str, Meta(min_length=64, max_length=64)]
    messages: Annotated[tuple[BundleMessage, ...], Meta(max_length=MESSAGES_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a bundle proves: every signature, reference and sum in it was checked."""

    contract_id: MessageId
    contract: Contract
    accepted_at_ms: UnixMs
    tokens_in: int
    meters: int
    vouchered: int
    receipt: Receipt | None
    closing: Closing | None
    messages: int


def verify_bundle_untrusted(data: bytes) -> Verified:
    """Return what the bundle proves; raises nothing but ``RemoteProtocolError``, which says what does not hold."""
    if len(data) > BUNDLE_BYTES_MAX:
        raise RemoteProtocolError(f"a bundle of {len(data)} bytes", reason=Reason.SIZE)
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
        network = NetworkId(bytes.fromhex(bundle.network))
        if len(network) != NETWORK_BYTES:
            raise ValueError(f"a network id has {NETWORK_BYTES} bytes")
        raws = [bytes.fromhex(item.envelope) for item in bundle.messages]
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"not a bundle: {exc}", reason=Reason.ENCODING) from exc
    types = tuple(MESSAGE_TYPES.values())
    return _judge_untrusted([read_untrusted(raw, network=network, allowed=types) for raw in raws])


def describe_untrusted(raw: bytes) -> dict[str, Readable]:
    """Return an envelope as plain values, bytes as hex; raises nothing but ``RemoteProtocolError``.

    The signature is checked under the network that the envelope itself names.
    """
    network = network_of_untrusted(raw)
    signed = read_untrusted(raw, network=network, allowed=tuple(MESSAGE_TYPES.values()))
    return {
        "type": signed.envelope.kind,
        "id": signed.message_id.hex(),
        "network": network.hex(),
        "signer": signed.signer.hex(),
        "signature": "valid",
        "body": readable(decode_untrusted(signed.envelope.body)),
    }


def readable(value: Plain) -> Readable:
    """Return ``value`` with bytes as hex, for people and JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value


S = TypeVar("S", bound=SignedMessage)


def _only_untrusted(messages: list[Signed[SignedMessage]], kind: type[S], signer: PeerId) -> list[Signed[S]]:
    """Return the messages of one type, all by ``signer``; raises nothing but ``RemoteProtocolError``."""
    found = [
        Signed(body_untrusted(item.envelope, kind), item.envelope)
        for item in messages
        if item.envelope.kind == kind.kind
    ]
    for item in found:
        require_signer_untrusted(item, signer)
    return found


def _judge_untrusted(messages: list[Signed[SignedMessage]]) -> Verified:
    """Check every reference and sum; raises nothing but ``RemoteProtocolError``."""
    contracts = [item for item in messages if isinstance(item.message, Contract)]
    if len(contracts) != 1:
        raise _broken(f"{len(contracts)} contracts in the bundle, expected one")
    contract, contract_id = contracts[0].message, contracts[0].message_id
    assert isinstance(contract, Contract)
    requester, provider = PeerId(contract.requester), PeerId(contract.provider)
    require_signer_untrusted(contracts[0], requester)
    _check_company_untrusted(messages, contract_id, contract)
    accepts = _only_untrusted(messages, Accept, provider)
    if len(accepts) != 1:
        raise _broken("the provider's signature under this contract is missing")
    check_accept_untrusted(accepts[0], contract_id=contract_id, contract=contract)
    accept = accepts[0].message
    meters = _only_untrusted(messages, Meter, provider)
    last = _check_meters_untrusted([item.message for item in meters], contract_id, contract, accept.tokens_in)
    vouchered = _check_vouchers_untrusted(
        [item.message for item in _only_untrusted(messages, Voucher, requester)],
        {item.message.number: item.message.cumulative for item in meters},
        contract_id,
    )
    receipts = _only_untrusted(messages, Receipt, provider)
    closings = _only_untrusted(messages, Closing, requester)
    if len(receipts) > 1 or len(closings) > 1:
        raise _broken("more than one receipt or closing for one contract")
    receipt = receipts[0].message if receipts else None
    closing = closings[0].message if closings else None
    if receipt is not None:
        _check_receipt_untrusted(receipt, contract_id, contract, last=last, vouchered=vouchered)
        if receipt.tokens_in != accept.tokens_in:
            raise _broken(f"the receipt counts {receipt.tokens_in} tokens in, {accept.tokens_in} were accepted")
    if closing is not None:
        if closing.contract_id != contract_id or not receipts or closing.receipt_id != receipts[0].message_id:
            raise _broken("the closing is for another contract or receipt")
        if closing.cumulative != vouchered:
            raise _broken(f"the closing says {closing.cumulative} µc, the vouchers {vouchered}")
        if closing.verdict == "ok" and closing.cumulative != receipts[0].message.cumulative:
            raise _broken(f"the closing says ok, but not the {receipts[0].message.cumulative} µc of the receipt")
    return Verified(
        contract_id=contract_id,
        contract=contract,
        accepted_at_ms=UnixMs(accept.accepted_at_ms),
        tokens_in=accept.tokens_in,
        meters=len(meters),
        vouchered=vouchered,
        receipt=receipt,
        closing=closing,
        messages=len(messages),
    )


def _check_company_untrusted(
    messages: list[Signed[SignedMessage]], contract_id: MessageId, contract: Contract
) -> None:
    """Refuse, with ``RemoteProtocolError``, what a stranger signed and a cancel of something else."""
    for item in messages:
        if item.signer not in (contract.requester, contract.provider):
            raise _broken(f"{item.envelope.kind}: signed by neither party")
        if isinstance(item.message, Cancel) and item.message.contract_id != contract_id:
            raise _broken("the cancel is for another contract")


def _check_meters_untrusted(
    meters: list[Meter], contract_id: MessageId, contract: Contract, tokens_in: int
) -> Meter | None:
    """Recompute every meter's sum and return the last; raises nothing but ``RemoteProtocolError``."""
    last: Meter | None = None
    for number, meter in enumerate(meters, start=1):
        if meter.contract_id != contract_id or meter.number != number or meter.tokens_in != tokens_in:
            raise _broken(f"meter {meter.number} does not belong at place {number}")
        if meter.tokens_out > contract.tokens_out_max:
            raise _broken(
                f"meter {number} counts {meter.tokens_out} tokens, {contract.tokens_out_max} were agreed"
            )
        owed = cost(
            contract.prices,
            tokens_in=tokens_in,
            tokens_out=meter.tokens_out,
            duration_ms=meter.duration_ms,
            price_max=contract.price_max,
        )
        if meter.cumulative != owed:
            raise _broken(f"meter {number} says {meter.cumulative} µc, the contract's prices give {owed}")
        if last is not None and (
            last.final or meter.tokens_out < last.tokens_out or meter.duration_ms < last.duration_ms
        ):
            raise _broken(f"meter {number} takes back what meter {last.number} said")
        last = meter
    return last


def _check_vouchers_untrusted(vouchers: list[Voucher], metered: dict[int, int], contract_id: MessageId) -> int:
    """Return what the vouchers promise in all; raises nothing but ``RemoteProtocolError``."""
    promised, meter = 0, 0
    for number, voucher in enumerate(vouchers, start=1):
        if voucher.contract_id != contract_id or voucher.number != number or voucher.meter <= meter:
            raise _broken(f"voucher {voucher.number} does not belong at place {number}")
        if not promised <= voucher.cumulative <= metered.get(voucher.meter, -1):
            raise _broken(f"voucher {number} pays {voucher.cumulative} µc, outside what was metered")
        promised, meter = voucher.cumulative, voucher.meter
    return promised


def _check_receipt_untrusted(
    receipt: Receipt, contract_id: MessageId, contract: Contract, *, last: Meter | None, vouchered: int
) -> None:
    """Check a receipt against the last meter and the vouchers; raises nothing but ``RemoteProtocolError``."""
    if receipt.contract_id != contract_id or receipt.model_id != contract.model_id:
        raise _broken("the receipt is for another contract or model")
    metered, tokens = (last.cumulative, last.tokens_out) if last is not None else (0, 0)
    if not tokens <= receipt.tokens_out <= contract.tokens_out_max:
        raise _broken(f"the receipt counts {receipt.tokens_out} tokens out, {tokens} were metered")
    # A failed job is billed what a voucher covers, a partial one what was metered.
    billable = vouchered if receipt.status == "failed" else metered
    if receipt.cumulative > billable:
        raise _broken(f"the receipt says {receipt.cumulative} µc, at most {billable} can be billed")
    if receipt.status != "complete":
        return
    # Against the meter, not the vouchers: a provider that was not paid in full must be able to show it.
    if receipt.cumulative != metered:
        raise _broken(f"the receipt says {receipt.cumulative} µc, the last meter {metered}")
    if last is None or (receipt.tokens_out, receipt.output_hash) != (last.tokens_out, last.output_hash):
        raise _broken("the receipt is for other output than the last meter")
    if receipt.finish is None:
        raise _broken("the receipt is complete, but does not say why the answer ended")


def _broken(message: str) -> RemoteProtocolError:
    return RemoteProtocolError(message, reason=Reason.MEANING)
