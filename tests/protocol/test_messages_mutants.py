"""Hostile variants of every signed message type, as many as issue and specification ask for.

Half are changed blindly, byte by byte; most others in their values, mostly canonical afterwards; the rest are
whole envelopes, some signed anew with the right key, so that a mutant gets past the signature. What is read is
judged as well, where there is a rule for it: against its contract, its account, its time.
"""

import copy
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest

from protocol.account import ProviderAccount, RequesterAccount
from protocol.advert import check_life_untrusted
from protocol.contract import check_accept_untrusted, check_contract_untrusted
from protocol.encoding import decode_untrusted, encode
from protocol.envelope import Envelope, body_bytes_max, body_of_untrusted, network_of_untrusted
from protocol.equivocation import slot_of
from protocol.evidence import describe_untrusted
from protocol.framing import InputFrame, OutputFrame
from protocol.messages import MESSAGE_TYPES
from protocol.schema import to_message_untrusted, to_plain
from protocol.signed import Signed, SignedMessage, read_untrusted
from protocol.task import decode_output_untrusted
from scripts.spec import examples
from tests.protocol.fakes import sealed
from tests.protocol.mutants import MsgpackMutator
from tests.protocol.ordeal import Ordeal

Judge = Callable[[Signed[Any]], object]  # Any: the message type of its kind
SHARES = {"bytes": 0.5, "values": 0.44, "envelopes": 0.03, "signed": 0.03}
GATE, DEEP = 100_000, 1_000_000

each_kind = pytest.mark.parametrize("kind", sorted(MESSAGE_TYPES))


def accounts_before() -> dict[str, tuple[RequesterAccount, ProviderAccount]]:
    """Return both sides' accounts as they stood before the last message of each kind of the example job."""
    steps = examples.whole_job().steps
    offered = next(step.signed for step in steps if step.signed and step.signed.envelope.kind == "contract")
    salt = next(step.frame.data for step in steps if isinstance(step.frame, InputFrame))
    terms: Any = offered.message
    taking = RequesterAccount(offered.message_id, terms, salt=salt, tokens_in=23)
    giving = ProviderAccount(offered.message_id, terms, salt=salt, tokens_in=23)
    found = {}
    for step in steps:
        if isinstance(step.frame, OutputFrame):
            taking.output_untrusted(step.frame.sequence, step.frame.data)
            giving.output(decode_output_untrusted(step.frame.data))
        if step.signed is None:
            continue
        message: Any = step.signed.message
        found[message.kind] = (copy.copy(taking), copy.copy(giving))
        if message.kind == "meter":
            giving.meter(message.duration_ms, final=message.final)
            taking.meter_untrusted(message, message.duration_ms + 30)
        elif message.kind == "voucher":
            giving.voucher_untrusted(message)
    return found


def judges() -> dict[str, Judge]:
    """Return what is asked of a message once it is read; a kind without a rule of its own is only read."""
    contract_id = sealed("contract").message_id
    terms: Any = sealed("contract").message
    receipt_id = sealed("receipt").message_id
    at = accounts_before()
    return {
        "advert": lambda it: check_life_untrusted(it.message, examples.NOW_MS),
        "contract": lambda it: check_contract_untrusted(
            it, provider=examples.PROVIDER.peer_id, now_ms=examples.NOW_MS
        ),
        "accept": lambda it: check_accept_untrusted(it, contract_id=contract_id, contract=terms),
        # Copies: a message that holds moves the account on.
        "meter": lambda it: copy.copy(at["meter"][0]).meter_untrusted(it.message, 850),
        "voucher": lambda it: copy.copy(at["voucher"][1]).voucher_untrusted(it.message),
        "receipt": lambda it: copy.copy(at["receipt"][0]).receipt_untrusted(it.message),
        "closing": lambda it: copy.copy(at["closing"][1]).closing_untrusted(it.message, receipt_id),
    }


class Target:
    """One message type: its example, its readers, its mutants."""

    def __init__(self, kind: str, run: str) -> None:
        self.kind = kind
        self.seed = f"{kind}/{run}"
        self._type = MESSAGE_TYPES[kind]
        self._signer = examples.messages()[kind][0]
        self._envelope: Envelope = sealed(kind).envelope
        self._judge = judges().get(kind)
        bodies = [sealed(other).envelope.body for other in sorted(MESSAGE_TYPES)]
        self.body = MsgpackMutator(f"{self.seed}/body", self._envelope.body, bodies)
        self._raws = [sealed(other).envelope.raw for other in sorted(MESSAGE_TYPES)]
        self.raw = MsgpackMutator(f"{self.seed}/envelope", self._envelope.raw, self._raws)

    def read_body(self, data: bytes) -> None:
        plain = decode_untrusted(data, size_max=body_bytes_max(self.kind))
        message = to_message_untrusted(plain, self._type)
        # One value, one encoding: no duplicate key, no long form, no other order was let through.
        assert encode(plain) == data
        if self._judge is not None:
            self._judge(Signed(message, self._envelope))

    def read_raw(self, raw: bytes) -> None:
        """Read an envelope as a node does, and by every other way in that looks at one."""
        for look in (network_of_untrusted, body_of_untrusted):
            look(raw)
        signed: Signed[SignedMessage] = read_untrusted(
            raw, network=examples.NETWORK, allowed=MESSAGE_TYPES.values()
        )
        slot_of(signed.envelope)
        describe_untrusted(raw)
        # What was read can be said again, and means the same.
        again = to_message_untrusted(to_plain(signed.message), type(signed.message))
        assert again == signed.message
        if self._judge is not None and signed.envelope.kind == self.kind:
            self._judge(signed)

    def signed(self) -> bytes:
        """Return an envelope whose signature holds, around a body that need not."""
        body = self.body.on_values()
        name = self.kind.encode()
        text = b"souk.sig.v1\x00" + bytes([len(name)]) + name + examples.NETWORK + sha256(body).digest()
        return encode([1, self.kind, examples.NETWORK, self._signer.peer_id, body, self._signer.sign(text)])

    def altered(self) -> bytes:
        """Return an envelope with the old signature, changed somewhere: no example as it is."""
        while (raw := self.raw.on_bytes()) in self._raws:
            pass
        return raw


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", GATE), pytest.param("deep", DEEP, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)
def test_readers_of_a_message_raise_one_class_when_fed_mutants(
    kind: str, run: str, count: int, figure: Callable[[str, str], None]
) -> None:
    target = Target(kind, run)
    ordeal = Ordeal(kind, target.seed)
    shares = {name: round(share * count) for name, share in SHARES.items()}
    ordeal.run(times(shares["bytes"], target.body.on_bytes), target.read_body)
    ordeal.run(times(shares["values"], target.body.on_values), target.read_body)
    sealed_only = Ordeal(kind, target.seed)
    sealed_only.run(times(shares["signed"], target.signed), target.read_raw)
    unsigned = Ordeal(kind, target.seed)
    unsigned.run(times(shares["envelopes"], target.altered), target.read_raw)
    assert not unsigned.stages["accepted"], "an envelope that nobody signed was read"
    # Otherwise it is the signature that was tested, and nothing behind it.
    past = sealed_only.share("schema", "time", "meaning", "price", "order", "signer", "accepted")
    assert past > 0.2, f"{kind}: only {past:.1%} of the signed mutants reached the schema"
    for part in (sealed_only, unsigned):
        ordeal.stages += part.stages
        ordeal.took_s += part.took_s
        ordeal.rss_growth = max(ordeal.rss_growth, part.rss_growth)
    assert ordeal.count() == count
    figure(f"decoders: {kind}", f"{ordeal.verdict()}; of the signed anew {past:.1%} past signature and encoding")


def times(count: int, make: Callable[[], bytes]) -> Iterator[bytes]:
    return (make() for _ in range(count))
