"""Evidence bundles for the vectors: some that hold, and some whose signatures are good and whose sums are not."""

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from msgspec.structs import replace

from node.keystore import Ed25519Signer
from protocol.signed import Signed, SignedMessage, sign
from scripts.spec import examples

Change: TypeAlias = Callable[[list[Signed[SignedMessage]]], list[Signed[SignedMessage]]]


def signed_job() -> list[Signed[SignedMessage]]:
    """Return the signed messages of the example job."""
    return [step.signed for step in examples.whole_job().steps if step.signed is not None]


def bundled(messages: list[Signed[SignedMessage]]) -> dict[str, Any]:  # Any: a JSON object
    return {
        "network": examples.NETWORK.hex(),
        "messages": [
            {
                "type": item.envelope.kind,
                "from": "requester" if item.signer == examples.REQUESTER.peer_id else "provider",
                "at_ms": examples.NOW_MS,
                "envelope": item.envelope.raw.hex(),
            }
            for item in messages
        ],
    }


def text_of(messages: list[Signed[SignedMessage]]) -> bytes:
    return json.dumps(bundled(messages)).encode()


def resigned(kind: str, *, place: int = 0, signer: Ed25519Signer | None = None, **changes: Any) -> Change:
    """Return a change of one message of a type; whoever signed it signs what it says now. (Any: field values.)"""

    def change(messages: list[Signed[SignedMessage]]) -> list[Signed[SignedMessage]]:
        at = [index for index, item in enumerate(messages) if item.envelope.kind == kind][place]
        own = examples.REQUESTER if messages[at].signer == examples.REQUESTER.peer_id else examples.PROVIDER
        new = sign(replace(messages[at].message, **changes), network=examples.NETWORK, signer=signer or own)
        return [*messages[:at], new, *messages[at + 1 :]]

    return change


def without(kind: str, place: int = 0) -> Change:
    """Return a change that drops one message of a type."""

    def change(messages: list[Signed[SignedMessage]]) -> list[Signed[SignedMessage]]:
        at = [index for index, item in enumerate(messages) if item.envelope.kind == kind][place]
        return messages[:at] + messages[at + 1 :]

    return change


def twice(kind: str) -> Change:
    """Return a change that repeats the first message of a type."""
    return lambda messages: [*messages, next(item for item in messages if item.envelope.kind == kind)]


def unclosed_receipt(**changes: Any) -> Change:
    """Return a change of the receipt alone: a closing would be of another receipt, and hide why it is refused."""
    return lambda messages: resigned("receipt", **changes)(without("closing")(messages))


CHANGES: dict[str, Change] = {
    "no contract": without("contract"),
    "two contracts": twice("contract"),
    "contract signed by a stranger": resigned("contract", signer=examples.STRANGER),
    "other terms than those accepted": resigned("contract", price_max=9_999),
    "no accept": without("accept"),
    "accept by a stranger": resigned("accept", signer=examples.STRANGER),
    "accept above the bound": resigned("accept", tokens_in=65),
    "meter dearer than the prices": resigned("meter", cumulative=129),
    "meter with more tokens for the same sum": resigned("meter", tokens_out=16),
    "meter above the bound": resigned("meter", tokens_out=17),
    "meter for another prompt length": resigned("meter", tokens_in=24),
    "first meter missing": without("meter"),
    "meters by the requester": resigned("meter", signer=examples.REQUESTER),
    "final meter repeated": twice("meter"),
    "meter after the final one": resigned("meter", final=True),
    "voucher above its meter": resigned("voucher", cumulative=129),
    "voucher for a meter that is missing": resigned("voucher", place=1, meter=3),
    "voucher that takes back": resigned("voucher", place=1, cumulative=127),
    "first voucher missing": without("voucher"),
    "last voucher missing": without("voucher", place=1),
    "receipt above the meters": unclosed_receipt(cumulative=152),
    "partial receipt above the meters": unclosed_receipt(status="partial", finish=None, cumulative=152),
    "failed receipt above the vouchers": lambda messages: without("voucher", place=1)(
        unclosed_receipt(status="failed", finish=None)(messages)
    ),
    "receipt below the meters, yet complete": unclosed_receipt(cumulative=150),
    "receipt for more tokens than agreed": unclosed_receipt(tokens_out=17),
    "receipt for fewer tokens than metered": unclosed_receipt(status="partial", finish=None, tokens_out=6),
    "receipt for other output": unclosed_receipt(output_hash=bytes(32)),
    "receipt for another model": unclosed_receipt(model_id=bytes(32)),
    "receipt for another prompt length": unclosed_receipt(tokens_in=24),
    "complete receipt without a reason to finish": unclosed_receipt(finish=None),
    "two receipts": twice("receipt"),
    "closing of another receipt": resigned("closing", receipt_id=bytes(32)),
    "closing with another sum": resigned("closing", cumulative=150),
    "closing without its receipt": without("receipt"),
    "two closings": twice("closing"),
    "quote by a stranger": resigned("quote", signer=examples.STRANGER),
}


def evidence() -> dict[str, Any]:  # Any: a JSON object
    """Return the vectors of spec 08."""
    good = signed_job()
    unpaid = without("closing")(without("voucher", place=1)(good))
    return {
        "valid": [
            {"name": "a whole job", "vouchered": 151, "bundle": bundled(good)},
            {"name": "the last voucher never came", "vouchered": 128, "bundle": bundled(unpaid)},
        ],
        "invalid": [{"name": name, "bundle": bundled(change(good))} for name, change in CHANGES.items()],
    }
