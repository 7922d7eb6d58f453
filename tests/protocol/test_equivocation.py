"""What one key signed twice convicts it before anybody; what an honest key may sign convicts nobody."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.equivocation import (
    PROOF_BYTES_MAX,
    SLOT_FIELDS,
    contradiction_untrusted,
    encode_proof,
    is_proof,
    prove,
    slot_of,
    verify_proof_untrusted,
)
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.messages import MESSAGE_TYPES
from scripts.spec import examples, proofs
from tests.protocol.fakes import mutants, reason_of, sealed
from tests.protocol.fakes_spec import rows, section

KINDS = sorted(proofs.LIES)


@pytest.mark.parametrize("kind", KINDS)
def test_third_party_convicts_a_key_when_it_signed_two_messages_for_one_slot(kind: str) -> None:
    first, second = proofs.lie(kind)
    made = prove(first, second)
    read = verify_proof_untrusted(encode_proof(made))
    assert read == made
    assert read.offender == first.signer and read.network == examples.NETWORK
    assert set(read.message_ids) == {first.message_id, second.message_id}
    assert contradiction_untrusted(first.envelope.raw, second.envelope.raw) == made


def test_proof_names_its_messages_in_one_order_whichever_came_first() -> None:
    first, second = proofs.lie("voucher")
    assert prove(first, second).message_ids == prove(second, first).message_ids


def test_slots_are_those_of_the_specification() -> None:
    table = rows(section("08-evidence.md", "Equivocation"))
    written = {kind: tuple(cell.strip("` ") for cell in cells[1].split(",")) for kind, cells in table.items()}
    assert written == {message_type.kind: fields for message_type, fields in SLOT_FIELDS.items()}


def test_messages_have_a_slot_exactly_when_their_type_has_one() -> None:
    with_slot = {kind for kind in MESSAGE_TYPES if slot_of(sealed(kind).envelope) is not None}
    assert with_slot == set(proofs.LIES)


def test_keys_of_slots_are_equal_only_for_one_slot() -> None:
    other = bytes(32)
    messages = [
        proofs.signed("meter"),
        proofs.signed("meter", number=9),
        proofs.signed("meter", contract_id=other),
    ]
    messages += [
        proofs.signed("meter", signer=examples.STRANGER),
        proofs.signed("voucher"),
        *proofs.lie("receipt"),
    ]
    slots = [slot_of(it.envelope) for it in messages]
    keys = [slot.key() for slot in slots if slot is not None]
    assert len(keys) == len(messages) and len(set(keys)) == len(set(slots)) == len(messages) - 1


@pytest.mark.parametrize("name", proofs.honest_pairs())
def test_nobody_is_convicted_when_the_two_messages_do_not_contradict(name: str) -> None:
    assert reason_of(verify_proof_untrusted, proofs.text_of(proofs.honest_pairs()[name])) is not None


def test_nobody_is_convicted_when_one_text_is_signed_twice() -> None:
    # Ed25519 allows many valid signatures of one text; ours is deterministic, so the same bytes stand for both.
    (voucher, _other) = proofs.lie("voucher")
    with pytest.raises(LocalProtocolError, match="same one"):
        prove(voucher, voucher)


def test_proof_is_refused_when_any_byte_of_an_envelope_is_altered() -> None:
    file = proofs.proof(proofs.lie("voucher"))
    for message in file["messages"]:
        raw = bytes.fromhex(message["envelope"])
        for at in range(len(raw)):
            message["envelope"] = (raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).hex()
            assert reason_of(verify_proof_untrusted, proofs.text_of(file)) is not None
        message["envelope"] = raw.hex()
    assert reason_of(verify_proof_untrusted, proofs.text_of(file)) is None


def test_two_messages_of_different_networks_make_no_proof() -> None:
    first, second = (
        proofs.signed("voucher"),
        proofs.signed("voucher", network=examples.OTHER_NETWORK, cumulative=7),
    )
    with pytest.raises(LocalProtocolError, match="different networks"):
        prove(first, second)
    with pytest.raises(RemoteProtocolError) as caught:
        contradiction_untrusted(first.envelope.raw, second.envelope.raw)
    assert caught.value.reason is Reason.NETWORK


def test_proof_is_refused_when_it_is_too_large() -> None:
    assert reason_of(verify_proof_untrusted, b" " * (PROOF_BYTES_MAX + 1)) is Reason.SIZE


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_proof_reader_raises_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        verify_proof_untrusted(data)


@pytest.mark.slow
def test_proof_reader_raises_one_class_when_fed_mutants() -> None:
    for mutant in mutants(b"proof", encode_proof(prove(*proofs.lie("meter"))), 2_000):
        reason_of(verify_proof_untrusted, mutant)


def test_proof_is_told_from_a_bundle_by_its_first_key() -> None:
    assert is_proof(json.loads(encode_proof(prove(*proofs.lie("closing")))))
    assert not is_proof({"network": "00", "messages": []}) and not is_proof([])
