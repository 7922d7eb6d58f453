"""Settlement for the vectors: what follows from which sums, and bundles of statements that hold or do not."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from msgspec.structs import replace

from node.keystore import Ed25519Signer
from protocol.schema import to_plain
from protocol.signed import Signed, SignedMessage, sign
from protocol.statement import Head, Settled, Statement, Sums, head_of, next_statement
from protocol.units import UnixMs
from scripts.spec import examples

Messages: TypeAlias = list[Signed[SignedMessage]]
Change: TypeAlias = Callable[[Messages], Messages]

FIRST: Final = examples.PROVIDER
SECOND: Final = examples.REQUESTER

# A pair's books, one line for each statement. In the third, more was paid than is open; the fourth takes the rest.
HISTORY: Final = (
    Sums(first_promised=40, second_promised=151, second_paid=100),
    Sums(first_promised=90, second_promised=151, second_paid=100),
    Sums(first_promised=90, second_promised=251, second_paid=300),
    Sums(first_promised=90, second_promised=1_000, second_paid=300, first_paid=5),
)


def signed_chain(history: tuple[Sums, ...] = HISTORY) -> Messages:
    """Return what the first's ledger holds of a pair with this history."""
    said: Messages = []
    head = Head()
    paid = {"first_paid": 0, "second_paid": 0}
    for place, sums in enumerate(history):
        for name, payee, payer in (("first_paid", SECOND, FIRST), ("second_paid", FIRST, SECOND)):
            cumulative = getattr(sums, name)
            if cumulative > paid[name]:
                number = sum(it.envelope.kind == "settled" and it.signer == payee.peer_id for it in said) + 1
                said.append(by(payee, settled(payer, number, cumulative, place)))
                paid[name] = cumulative
        made = next_statement(examples.PARTIES, head, sums, now_ms=at(place))
        assert made is not None
        signed = by(FIRST, made)
        said += [signed, by(SECOND, made)]
        head = head_of(Signed(made, signed.envelope))
    return said


def at(place: int) -> UnixMs:
    return UnixMs(examples.NOW_MS + 60_000 * (place + 1))


def settled(payer: Ed25519Signer, number: int, cumulative: int, place: int) -> Settled:
    return Settled(payer=payer.peer_id, number=number, cumulative=cumulative, made_at_ms=at(place) - 10_000)


def by(signer: Ed25519Signer, message: SignedMessage) -> Signed[SignedMessage]:
    return sign(message, network=examples.NETWORK, signer=signer)


def bundled(messages: Messages, *, number: int | None = None) -> dict[str, Any]:  # Any: a JSON object
    numbers = [it.message.number for it in messages if isinstance(it.message, Statement)]
    return {
        "settlement": number or max(numbers, default=1),
        "network": examples.NETWORK.hex(),
        "messages": [{"type": it.envelope.kind, "envelope": it.envelope.raw.hex()} for it in messages],
    }


def text_of(messages: Messages) -> bytes:
    return json.dumps(bundled(messages)).encode()


def resigned(number: int, **changes: Any) -> Change:
    """Return a change of one statement that both parties sign. (Any: field values.)"""

    def change(messages: Messages) -> Messages:
        out: Messages = []
        for it in messages:
            if isinstance(it.message, Statement) and it.message.number == number:
                signer = FIRST if it.signer == FIRST.peer_id else SECOND
                it = by(signer, replace(it.message, **changes))
            out.append(it)
        return out

    return change


def without(*places: int) -> Change:
    """Return a change that drops the messages at these places."""
    return lambda messages: [it for place, it in enumerate(messages) if place not in places]


def second_signature(number: int, signer: Ed25519Signer, **changes: Any) -> Change:
    """Return a change of who signs below a statement, or what. (Any: field values.)"""

    def change(messages: Messages) -> Messages:
        places = [p for p, it in enumerate(messages) if getattr(it.message, "number", 0) == number]
        last = max(p for p in places if messages[p].envelope.kind == "statement")
        statement = messages[last].message
        return [*messages[:last], by(signer, replace(statement, **changes)), *messages[last + 1 :]]

    return change


# Places: settled 0, statement 1 at 1-2, statement 2 at 3-4, settled 5, statement 3 at 6-7, settled 8, 4 at 9-10.
CHANGES: Final[dict[str, Change]] = {
    "no statement": lambda messages: [it for it in messages if it.envelope.kind == "settled"],
    "a statement that only one signed": lambda messages: messages[:2],
    "a gap in the numbers": without(3, 4),
    "statements out of order": lambda messages: [*messages[:1], *messages[3:5], *messages[1:3], *messages[6:]],
    "second signature by the first": second_signature(4, FIRST),
    "second signature by a stranger": second_signature(4, examples.STRANGER),
    "second signature under another text": second_signature(4, SECOND, second_promised=1_001),
    "another previous": resigned(4, previous=bytes(32)),
    "promises that fall": resigned(4, first_promised=89),
    "payments that fall": resigned(4, second_paid=60),
    "more paid than was acknowledged": without(5),
    "more paid than was open": lambda messages: resigned(2, second_paid=120, netted=31)(messages[:6]),
    "netted too much": resigned(4, netted=86),
    "netted too little": resigned(4, netted=84),
    "nothing new": resigned(2, first_promised=40, netted=40),
    "settled that takes back": lambda messages: [*messages, by(FIRST, settled(SECOND, 3, 299, 4))],
    "settled with an old number": lambda messages: [*messages, by(FIRST, settled(SECOND, 2, 301, 4))],
    "settled by a stranger": lambda messages: [*messages, by(examples.STRANGER, settled(SECOND, 3, 301, 4))],
    "first statement rewritten": resigned(1, made_at_ms=1),
}


def settlement() -> dict[str, Any]:  # Any: a JSON object
    """Return the vectors of spec 09."""
    chain = signed_chain()
    rule: list[dict[str, Any]] = []  # Any: JSON objects
    head = Head()
    for it in chain:
        if not isinstance(it.message, Statement) or it.signer != FIRST.peer_id:
            continue
        sums = HISTORY[it.message.number - 1]
        body = {name: v.hex() if isinstance(v, bytes) else v for name, v in to_plain(it.message).items()}
        following = head_of(Signed(it.message, it.envelope))
        rule.append(
            {"previous": head.hash.hex(), "sums": asdict(sums), "statement": body, "hash": following.hash.hex()}
        )
        head = following
    return {
        "network": examples.NETWORK.hex(),
        "rule": rule,
        "valid": [
            {"name": "a whole chain", "first_number": 1, "bundle": bundled(chain)},
            {"name": "the last statement waits for its signature", "first_number": 1,
             "bundle": bundled(chain[:-1], number=3)},
            {"name": "a chain from statement 3 on", "first_number": 3, "bundle": bundled(chain[5:])},
        ],
        "invalid": [{"name": name, "bundle": bundled(change(chain))} for name, change in CHANGES.items()],
    }  # fmt: skip
