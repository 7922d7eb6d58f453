"""A bundle of statements is judged by itself: what both signed holds, what one of them wrote alone does not."""

import json

import pytest

from protocol.encoding import encode
from protocol.errors import Reason
from protocol.evidence import BUNDLE_BYTES_MAX
from protocol.settlement import encode_settlement, is_settlement, verify_settlement_untrusted
from scripts.spec import bundles, examples, settlements
from tests.protocol.fakes import mutants, reason_of


def test_bundle_proves_the_last_statement_that_both_signed() -> None:
    chain = settlements.signed_chain()
    found = verify_settlement_untrusted(settlements.text_of(chain))
    assert (found.statements, found.first_number, found.last) == (4, 1, chain[-1].message)
    assert found.last.settled_by(examples.REQUESTER.peer_id) == 85 + 300
    assert found.last.settled_by(examples.PROVIDER.peer_id) == 85 + 5
    assert found.last.promised_by(examples.REQUESTER.peer_id) == 1_000


def test_bundle_is_written_as_it_is_read() -> None:
    chain = settlements.signed_chain()
    data = encode_settlement(4, examples.NETWORK, [(it.envelope.kind, it.envelope.raw) for it in chain])
    assert json.loads(data) == settlements.bundled(chain)
    assert is_settlement(json.loads(data)) and not is_settlement(bundles.bundled(bundles.signed_job()))


@pytest.mark.parametrize("name", settlements.CHANGES)
def test_bundle_is_refused_when_an_honest_pair_cannot_have_written_it(name: str) -> None:
    data = settlements.text_of(settlements.CHANGES[name](settlements.signed_chain()))
    assert reason_of(verify_settlement_untrusted, data) in (Reason.MEANING, Reason.SIGNER, Reason.ORDER)


def test_bundle_is_refused_when_its_label_or_network_lies() -> None:
    chain = settlements.signed_chain()
    assert reason_of(verify_settlement_untrusted, json.dumps(settlements.bundled(chain, number=5)).encode())
    elsewhere = settlements.bundled(chain) | {"network": examples.OTHER_NETWORK.hex()}
    assert reason_of(verify_settlement_untrusted, json.dumps(elsewhere).encode()) is Reason.NETWORK


def test_bundle_is_refused_when_it_holds_messages_of_a_contract() -> None:
    mixed = [*settlements.signed_chain(), bundles.signed_job()[0]]
    assert reason_of(verify_settlement_untrusted, settlements.text_of(mixed)) is Reason.TYPE


def test_bundle_is_refused_when_any_byte_of_an_envelope_is_altered() -> None:
    bundle = settlements.bundled(settlements.signed_chain())
    for message in bundle["messages"]:
        raw = bytes.fromhex(message["envelope"])
        for at in range(0, len(raw), 31):
            message["envelope"] = (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).hex()
            assert reason_of(verify_settlement_untrusted, json.dumps(bundle).encode()) is not None
        message["envelope"] = raw.hex()
    assert reason_of(verify_settlement_untrusted, json.dumps(bundle).encode()) is None


def test_bundle_reader_raises_one_class_when_fed_mutants() -> None:
    data = settlements.text_of(settlements.signed_chain())
    for mutant in mutants(b"settlement", data, 500):
        reason_of(verify_settlement_untrusted, mutant)
    for junk in (b"", b"[]", b"{}", b"[" * 5_000, encode({"settlement": 1}), bytes(BUNDLE_BYTES_MAX + 1)):
        assert reason_of(verify_settlement_untrusted, junk) in (Reason.ENCODING, Reason.SIZE)
