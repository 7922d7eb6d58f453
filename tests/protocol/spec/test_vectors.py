import json
from hashlib import sha256
from typing import Any

import pytest

from node.keystore import Ed25519Signer
from protocol.account import first_link, next_link
from protocol.contract import hash_input
from protocol.encoding import Plain, decode_untrusted, encode
from protocol.envelope import network_id, seal
from protocol.equivocation import verify_proof_untrusted
from protocol.errors import Reason, RemoteProtocolError
from protocol.evidence import verify_bundle_untrusted
from protocol.framing import decode_frame_untrusted, encode_frame
from protocol.identity import (
    check_key_untrusted,
    peer_id_from_text_untrusted,
    peer_id_to_text,
    verify_untrusted,
)
from protocol.messages import MESSAGE_TYPES
from protocol.price import Prices, cost
from protocol.schema import to_message_untrusted, to_plain
from protocol.settlement import verify_settlement_untrusted
from protocol.signed import read_untrusted
from protocol.statement import Head, Sums, next_statement, statement_hash
from protocol.task import decode_input_untrusted, decode_output_untrusted, encode_input
from protocol.units import NetworkId, PeerId, UnixMs
from scripts.spec import examples, vectors

Json = Any  # vectors are JSON of many shapes; a test that misreads one fails


def load(name: str) -> Json:
    return json.loads((vectors.FOLDER / name).read_text("utf-8"))


def cases(name: str, key: str) -> pytest.MarkDecorator:
    rows = load(name)[key]
    return pytest.mark.parametrize("row", rows, ids=[row.get("name") or row.get("type") for row in rows])


def value_of(shown: Json) -> Plain:
    """Return the value that a vector shows."""
    if isinstance(shown, dict):
        if set(shown) == {"$hex"}:
            return bytes.fromhex(shown["$hex"])
        return {key: value_of(item) for key, item in shown.items()}
    return [value_of(item) for item in shown] if isinstance(shown, list) else shown


def refusal(reader: Any, *arguments: Any, **named: Any) -> Reason:  # Any: whichever reader
    with pytest.raises(RemoteProtocolError) as caught:
        reader(*arguments, **named)
    return caught.value.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", vectors.FILES)
def test_vectors_are_what_the_code_makes_today(name: str) -> None:
    assert vectors.written(name) == (vectors.FOLDER / name).read_text("utf-8"), "run scripts/make_vectors"


def test_no_file_of_vectors_is_left_over() -> None:
    assert {path.name for path in vectors.FOLDER.iterdir()} == set(vectors.FILES)


@cases("encoding.json", "valid")
def test_encoder_writes_the_vector_and_decoder_reads_it(row: Json) -> None:
    data = bytes.fromhex(row["hex"])
    assert encode(value_of(row["value"])) == data
    assert decode_untrusted(data) == value_of(row["value"])


@cases("encoding.json", "invalid")
def test_decoder_refuses_the_vector_for_its_reason(row: Json) -> None:
    assert refusal(decode_untrusted, bytes.fromhex(row["hex"])) == row["reason"]


@cases("envelope.json", "valid")
def test_envelope_is_made_and_read_as_the_vector_says(row: Json) -> None:
    file = load("envelope.json")
    network = network_id(file["network_config"])
    assert network.hex() == file["network"]
    signer = next(
        candidate
        for candidate in (Ed25519Signer(bytes.fromhex(seed)) for seed in file["seeds"].values())
        if candidate.peer_id.hex() == row["signer"]
    )
    made = seal(row["type"], value_of(row["body"]), network=network, signer=signer)
    assert (made.raw.hex(), made.body.hex(), made.message_id.hex()) == (
        row["envelope"],
        row["body_hex"],
        row["id"],
    )
    read = read_untrusted(made.raw, network=network, allowed=MESSAGE_TYPES.values())
    assert read.message == to_message_untrusted(value_of(row["body"]), MESSAGE_TYPES[row["type"]])


def test_envelope_with_an_extension_is_read_when_its_key_begins_with_x() -> None:
    file = load("envelope.json")
    raw = bytes.fromhex(file["valid_with_extension"])
    read = read_untrusted(raw, network=NetworkId(bytes.fromhex(file["network"])), allowed=MESSAGE_TYPES.values())
    plain = next(row for row in file["valid"] if row["type"] == "voucher")
    assert read.message == to_message_untrusted(value_of(plain["body"]), MESSAGE_TYPES["voucher"])
    assert read.message_id.hex() != plain["id"]


@cases("envelope.json", "invalid")
def test_envelope_is_refused_for_the_reason_of_the_vector(row: Json) -> None:
    network = NetworkId(bytes.fromhex(load("envelope.json")["network"]))
    allowed = [MESSAGE_TYPES[kind] for kind in row["allowed"]]
    assert refusal(read_untrusted, bytes.fromhex(row["hex"]), network=network, allowed=allowed) == row["reason"]


@cases("keys.json", "signatures")
def test_key_and_signature_are_judged_as_the_vector_says(row: Json) -> None:
    key, message, signature = (bytes.fromhex(row[name]) for name in ("key", "message", "signature"))
    if row["reason"] == "signer":
        assert refusal(check_key_untrusted, key) is Reason.SIGNER
        return
    assert check_key_untrusted(key) == key
    if row["reason"] is None:
        verify_untrusted(PeerId(key), message, signature)
    else:
        assert refusal(verify_untrusted, PeerId(key), message, signature) == row["reason"]


def test_fifteen_edge_cases_of_ed25519_are_refused() -> None:
    assert sum(row["reason"] is not None for row in load("keys.json")["signatures"]) == 15


def test_peer_ids_are_written_and_read_as_the_vectors_say() -> None:
    for row in load("keys.json")["peer_ids"]:
        key = Ed25519Signer(bytes.fromhex(row["seed"])).peer_id
        assert (key.hex(), peer_id_to_text(key)) == (row["key"], row["text"])
        assert peer_id_from_text_untrusted(row["text"]) == key


@cases("keys.json", "peer_ids_invalid")
def test_peer_id_text_is_refused_when_the_vector_is_invalid(row: Json) -> None:
    assert refusal(peer_id_from_text_untrusted, row["text"]) is Reason.SIGNER


def test_prices_cost_what_the_vectors_say() -> None:
    for row in load("price.json")["valid"]:
        prices = Prices(**row["prices"])
        named = {name: row[name] for name in ("tokens_in", "tokens_out", "duration_ms", "price_max")}
        assert cost(prices, **named) == row["cost"]


def test_output_chain_runs_as_the_vectors_say() -> None:
    file = load("output.json")
    link = first_link(bytes.fromhex(file["salt"]))
    assert link == sha256(b"souk.output.v1\0" + bytes.fromhex(file["salt"])).digest()
    assert link.hex() == file["first_link"]
    for row in file["frames"]:
        data = bytes.fromhex(row["data"])
        link = next_link(link, row["sequence"], data)
        assert link.hex() == row["link"]
        assert decode_output_untrusted(data).text == row["output"]["text"]


@cases("frames.json", "valid")
def test_frame_is_read_and_written_as_the_vector_says(row: Json) -> None:
    data = bytes.fromhex(row["hex"])
    assert encode_frame(decode_frame_untrusted(data)) == data
    assert row["wire"] == f"{len(data):08x}{row['hex']}"


@cases("frames.json", "invalid")
def test_frame_is_refused_for_the_reason_of_the_vector(row: Json) -> None:
    data = bytes.fromhex(row["hex"]) + bytes(row["zeros"])
    assert refusal(decode_frame_untrusted, data) == row["reason"]


def test_inputs_are_written_and_hashed_as_the_vectors_say() -> None:
    for row in load("task.json")["valid"]:
        task_input = decode_input_untrusted(bytes.fromhex(row["hex"]))
        assert encode_input(task_input).hex() == row["hex"]
        assert hash_input(bytes.fromhex(row["salt"]), bytes.fromhex(row["hex"])).hex() == row["input_hash"]


@cases("task.json", "invalid")
def test_input_is_refused_for_the_reason_of_the_vector(row: Json) -> None:
    assert refusal(decode_input_untrusted, bytes.fromhex(row["hex"])) == row["reason"]


def test_job_holds_together_when_it_is_read_from_the_wire() -> None:
    file = load("job.json")
    network = NetworkId(bytes.fromhex(file["network"]))
    salt, pieces, link, seen = b"", b"", b"", []
    for step in file["steps"]:
        data = bytes.fromhex(step["wire"])
        assert int.from_bytes(data[:4], "big") == len(data) - 4
        frame = decode_frame_untrusted(data[4:])
        match step["frame"]:
            case "envelope":
                signed = read_untrusted(data[5:], network=network, allowed=MESSAGE_TYPES.values())
                assert signed.signer.hex() == file[step["from"]]
                assert signed.message_id.hex() == step["message"]["id"]
                seen.append(signed)
            case "input" if not salt:
                salt = frame.data  # type: ignore[union-attr]  # the vector says which frame it is
                link = first_link(salt)
            case "input":
                pieces += frame.data  # type: ignore[union-attr]  # as above
            case "output":
                link = next_link(link, frame.sequence, frame.data)  # type: ignore[union-attr]  # as above
    by_kind: Json = {signed.envelope.kind: signed for signed in seen}
    assert hash_input(salt, pieces) == by_kind["contract"].message.input_hash
    assert by_kind["receipt"].message.output_hash == by_kind["meter"].message.output_hash == link
    assert by_kind["closing"].message.receipt_id == by_kind["receipt"].message_id
    assert by_kind["quote"].message.ask_id == by_kind["ask"].message_id


@cases("evidence.json", "valid")
def test_bundle_proves_what_the_vector_says(row: Json) -> None:
    assert verify_bundle_untrusted(json.dumps(row["bundle"]).encode()).vouchered == row["vouchered"]


@cases("evidence.json", "invalid")
def test_bundle_is_refused_when_a_sum_or_reference_does_not_hold(row: Json) -> None:
    assert refusal(verify_bundle_untrusted, json.dumps(row["bundle"]).encode()) in (Reason.MEANING, Reason.SIGNER)


@cases("equivocation.json", "valid")
def test_proof_convicts_whom_the_vector_names(row: Json) -> None:
    assert verify_proof_untrusted(json.dumps(row["proof"]).encode()).offender.hex() == row["offender"]


@cases("equivocation.json", "invalid")
def test_proof_is_refused_when_its_messages_do_not_contradict(row: Json) -> None:
    assert refusal(verify_proof_untrusted, json.dumps(row["proof"]).encode())


def test_statements_follow_each_other_as_the_vectors_say() -> None:
    head = Head()
    for row in load("settlement.json")["rule"]:
        assert row["previous"] == head.hash.hex()
        now_ms = UnixMs(row["statement"]["made_at_ms"])
        made = next_statement(examples.PARTIES, head, Sums(**row["sums"]), now_ms=now_ms)
        assert made is not None
        plain = to_plain(made)
        assert {name: it.hex() if isinstance(it, bytes) else it for name, it in plain.items()} == row["statement"]
        head = Head(statement=made, hash=statement_hash(encode(plain)))
        assert row["hash"] == head.hash.hex()


@cases("settlement.json", "valid")
def test_settlement_bundle_holds_as_the_vector_says(row: Json) -> None:
    found = verify_settlement_untrusted(json.dumps(row["bundle"]).encode())
    assert (found.first_number, found.last.number) == (row["first_number"], row["bundle"]["settlement"])


@cases("settlement.json", "invalid")
def test_settlement_bundle_is_refused_when_a_sum_or_signature_does_not_hold(row: Json) -> None:
    reason = refusal(verify_settlement_untrusted, json.dumps(row["bundle"]).encode())
    assert reason in (Reason.MEANING, Reason.SIGNER, Reason.ORDER)
