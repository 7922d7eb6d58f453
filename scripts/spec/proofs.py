"""Proofs of equivocation for the vectors: some that hold, and pairs that an honest key may well have signed."""

import json
from typing import Any, Final

from msgspec.structs import replace

from node.keystore import Ed25519Signer
from protocol.encoding import encode
from protocol.signed import Signed, SignedMessage, sign
from protocol.units import NetworkId
from scripts.spec import examples

Pair = tuple[Signed[SignedMessage], Signed[SignedMessage]]

# One field of each type that is in no slot, and so makes two messages contradict.
LIES: Final[dict[str, dict[str, Any]]] = {
    "advert": {"slots_free": 0},
    "accept": {"tokens_in": 24},
    "meter": {"cumulative": 150},
    "voucher": {"cumulative": 7},
    "receipt": {"cumulative": 7},
    "closing": {"verdict": "bad"},
    "statement": {"first_promised": 99},
    "settled": {"cumulative": 7},
}


def signed(
    kind: str, *, signer: Ed25519Signer | None = None, network: NetworkId = examples.NETWORK, **changes: Any
) -> Signed[SignedMessage]:
    """Return the example message of a type with some fields changed. (Any: field values.)"""
    own, message = examples.messages()[kind]
    return sign(replace(message, **changes), network=network, signer=signer or own)


def lie(kind: str) -> Pair:
    """Return two messages of one type that contradict each other."""
    return signed(kind), signed(kind, **LIES[kind])


def proof(pair: Pair, *, kind: str | None = None, network: NetworkId = examples.NETWORK) -> dict[str, Any]:
    """Return the JSON object of a proof, whether it holds or not."""
    return {
        "equivocation": kind or pair[0].envelope.kind,
        "network": network.hex(),
        "messages": [{"type": it.envelope.kind, "envelope": it.envelope.raw.hex()} for it in pair],
    }


def text_of(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def honest_pairs() -> dict[str, dict[str, Any]]:
    """Return proofs that prove nothing, by what is wrong with them."""
    voucher = signed("voucher")
    elsewhere = bytes(32)
    other_text = signed("voucher", cumulative=7)
    forged = bytearray(other_text.envelope.raw)
    forged[-1] ^= 1
    broken = proof((voucher, other_text))
    broken["messages"][1]["envelope"] = bytes(forged).hex()
    one_message = proof((voucher, voucher))
    one_message["messages"].pop()
    unreadable = proof((voucher, voucher))
    unreadable["messages"][1]["envelope"] = encode([1, "voucher"]).hex()
    return {
        "one message twice": proof((voucher, voucher)),
        "vouchers of different numbers": proof((voucher, signed("voucher", number=9))),
        "meters of different contracts": proof((signed("meter"), signed("meter", contract_id=elsewhere))),
        "adverts of different sequences": proof(
            (signed("advert"), signed("advert", sequence=examples.NOW_MS + 1))
        ),
        "two different signers": proof((voucher, signed("voucher", signer=examples.STRANGER, cumulative=7))),
        "messages of different types": proof((signed("receipt"), signed("closing"))),
        "two contracts": proof((signed("contract"), signed("contract", price_max=9_999))),
        "statements of different numbers": proof((signed("statement"), signed("statement", number=9))),
        "statements with different partners": proof(
            (signed("statement"), signed("statement", second=examples.STRANGER.peer_id))
        ),
        "two tallies": proof((signed("tally"), signed("tally", promised=9))),
        "two cancels": proof((signed("cancel"), signed("cancel", code="deadline"))),
        "second signature does not hold": broken,
        "second message of another network": proof(
            (voucher, signed("voucher", network=examples.OTHER_NETWORK, cumulative=7))
        ),
        "network that neither names": proof((voucher, other_text), network=examples.OTHER_NETWORK),
        "another type on the label": proof((voucher, other_text), kind="receipt"),
        "one message": one_message,
        "second is no envelope": unreadable,
    }


def equivocation() -> dict[str, Any]:
    """Return the vectors of spec 08, section 2."""
    return {
        "valid": [
            {"name": kind, "offender": lie(kind)[0].signer.hex(), "proof": proof(lie(kind))} for kind in LIES
        ],
        "invalid": [{"name": name, "proof": value} for name, value in honest_pairs().items()],
    }
