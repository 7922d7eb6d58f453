import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.encoding import encode
from protocol.errors import Reason, RemoteProtocolError
from protocol.evidence import (
    BUNDLE_BYTES_MAX,
    MESSAGES_MAX,
    describe_untrusted,
    readable,
    verify_bundle_untrusted,
)
from protocol.messages import MESSAGE_TYPES
from protocol.schema import to_plain
from scripts.spec import bundles, examples
from tests.protocol.fakes import mutants, reason_of, sealed


def test_bundle_of_a_whole_job_says_what_was_agreed_done_and_promised() -> None:
    proof = verify_bundle_untrusted(bundles.text_of(bundles.signed_job()))
    assert (proof.vouchered, proof.meters, proof.tokens_in, proof.messages) == (151, 2, 23, 10)
    assert proof.contract.provider == examples.PROVIDER.peer_id
    assert proof.receipt is not None and proof.receipt.status == "complete"
    assert proof.closing is not None and proof.closing.verdict == "ok"


def test_bundle_holds_when_the_job_ended_early() -> None:
    good = bundles.signed_job()
    for length in range(4, len(good)):
        verify_bundle_untrusted(bundles.text_of(good[:length]))


@pytest.mark.parametrize(("status", "most"), [("partial", 151), ("failed", 151)])
def test_bundle_holds_when_a_receipt_bills_no_more_than_it_may(status: str, most: int) -> None:
    for cumulative in (0, most):
        change = bundles.unclosed_receipt(status=status, finish=None, cumulative=cumulative)
        verify_bundle_untrusted(bundles.text_of(change(bundles.signed_job())))


@pytest.mark.parametrize("name", bundles.CHANGES)
def test_bundle_is_refused_when_a_party_signed_something_that_does_not_hold(name: str) -> None:
    data = bundles.text_of(bundles.CHANGES[name](bundles.signed_job()))
    assert reason_of(verify_bundle_untrusted, data) in (Reason.MEANING, Reason.SIGNER)


def test_bundle_is_refused_when_any_byte_of_an_envelope_is_altered() -> None:
    bundle = bundles.bundled(bundles.signed_job())
    for message in bundle["messages"]:
        raw = bytes.fromhex(message["envelope"])
        for at in range(0, len(raw), 7):
            altered = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            message["envelope"] = altered.hex()
            assert reason_of(verify_bundle_untrusted, json.dumps(bundle).encode()) is not None
        message["envelope"] = raw.hex()
    assert reason_of(verify_bundle_untrusted, json.dumps(bundle).encode()) is None


def test_bundle_is_refused_when_it_is_of_another_network() -> None:
    bundle = bundles.bundled(bundles.signed_job())
    bundle["network"] = examples.OTHER_NETWORK.hex()
    assert reason_of(verify_bundle_untrusted, json.dumps(bundle).encode()) is Reason.NETWORK
    bundle["network"] = examples.NETWORK.hex()[:62] + "  "
    assert reason_of(verify_bundle_untrusted, json.dumps(bundle).encode()) is Reason.ENCODING


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_bundle_reader_raises_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verify_bundle_untrusted(data)


@pytest.mark.slow
def test_bundle_reader_raises_one_class_when_fed_mutants() -> None:
    data = bundles.text_of(bundles.signed_job())
    for mutant in mutants(b"bundle", data, 500):
        reason_of(verify_bundle_untrusted, mutant)


def test_bundle_is_refused_when_it_is_too_large() -> None:
    assert reason_of(verify_bundle_untrusted, b" " * (BUNDLE_BYTES_MAX + 1)) is Reason.SIZE
    many = {"network": "00" * 32, "messages": [{"type": "", "envelope": ""}] * (MESSAGES_MAX + 1)}
    assert reason_of(verify_bundle_untrusted, json.dumps(many).encode()) is Reason.ENCODING


@pytest.mark.parametrize("kind", sorted(MESSAGE_TYPES))
def test_description_shows_every_field_of_an_envelope(kind: str) -> None:
    signed = sealed(kind)
    shown = describe_untrusted(signed.envelope.raw)
    assert shown["type"] == kind
    assert shown["id"] == signed.message_id.hex()
    assert shown["body"] == readable(to_plain(signed.message))
    json.dumps(shown)


def test_description_is_refused_when_the_signature_does_not_hold() -> None:
    raw = bytearray(sealed("voucher").envelope.raw)
    raw[-1] ^= 1
    assert reason_of(describe_untrusted, bytes(raw)) is Reason.SIGNATURE
    assert reason_of(describe_untrusted, encode([1, "voucher", b"net", b"", b"", b""])) is Reason.ENVELOPE
