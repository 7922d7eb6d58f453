from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.encoding import Plain, decode_untrusted, encode
from protocol.envelope import Envelope, body_bytes_max, network_id, network_of_untrusted, open_untrusted, seal
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.messages import MESSAGE_TYPES
from protocol.signed import read_untrusted
from protocol.units import NetworkId
from scripts.spec import examples
from tests.protocol.fakes import body_of, forced, mutants, reason_of, sealed

KINDS = frozenset(MESSAGE_TYPES)
each_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def opened(raw: bytes) -> Envelope:
    return open_untrusted(raw, network=examples.NETWORK, kinds=KINDS)


def fields_of(kind: str) -> list[Plain]:
    fields = decode_untrusted(sealed(kind).envelope.raw, size_max=1 << 20)
    assert isinstance(fields, list)
    return fields


@each_kind
def test_reader_returns_what_was_sealed_when_nothing_was_changed(kind: str) -> None:
    envelope = sealed(kind).envelope
    assert opened(envelope.raw) == envelope


@pytest.mark.slow
def test_reader_refuses_an_envelope_when_one_bit_is_flipped(figure: Callable[[str, str], None]) -> None:
    flips: Counter[str] = Counter()
    for kind in sorted(KINDS):
        raw = bytearray(sealed(kind).envelope.raw)
        for bit in range(8 * len(raw)):
            raw[bit // 8] ^= 1 << bit % 8
            reason = reason_of(opened, bytes(raw))
            assert reason is not None, (kind, bit)
            flips[reason] += 1
            raw[bit // 8] ^= 1 << bit % 8
    figure("envelopes: bit flips", f"{flips.total()} of {len(KINDS)} types, all refused: {shown(flips)}")


def test_reader_refuses_an_envelope_when_it_is_cut_or_lengthened(figure: Callable[[str, str], None]) -> None:
    cuts = 0
    for kind in sorted(KINDS):
        raw = sealed(kind).envelope.raw
        for length in range(len(raw)):
            assert reason_of(opened, raw[:length]) is Reason.ENCODING, (kind, length)
            cuts += 1
        assert reason_of(opened, raw + b"\x00") is Reason.ENCODING
    figure("envelopes: truncations", f"{cuts} of {len(KINDS)} types, all refused")


def test_reader_refuses_every_type_in_the_place_of_every_other_and_of_another_network(
    figure: Callable[[str, str], None],
) -> None:
    pairs = networks = 0
    for kind in sorted(KINDS):
        fields = fields_of(kind)
        raw = encode(fields)
        for other in KINDS - {kind}:
            allowed = [MESSAGE_TYPES[other]]
            read = partial(read_untrusted, network=examples.NETWORK, allowed=allowed)
            # As it is, under another name, and under that name with its body signed by somebody for this type.
            assert reason_of(read, raw) is Reason.TYPE, (kind, other)
            assert reason_of(read, encode([1, other, *fields[2:]])) is Reason.SIGNATURE, (kind, other)
            assert reason_of(read, forced(other, sealed(kind).envelope.body)) is Reason.SCHEMA, (kind, other)
            pairs += 1
        for network in (examples.OTHER_NETWORK, NetworkId(bytes(32))):
            foreign = partial(open_untrusted, network=network, kinds=KINDS)
            assert reason_of(foreign, raw) is Reason.NETWORK
            assert reason_of(foreign, encode([*fields[:2], network, *fields[3:]])) is Reason.SIGNATURE
            networks += 1
    figure(
        "envelopes: replays",
        f"{pairs} pairs of types in 3 ways, {networks} of {len(KINDS)} types in another network in 2: all refused",
    )


def shown(counts: "Counter[str]") -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


@each_kind
def test_reader_raises_one_class_when_fed_mutants(kind: str) -> None:
    raw = sealed(kind).envelope.raw
    for mutant in mutants(kind.encode(), raw, 2_000):
        assert reason_of(opened, mutant) is not None


@given(st.binary(max_size=400))
def test_reader_raises_one_class_when_fed_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(data)
    with pytest.raises(RemoteProtocolError):
        network_of_untrusted(data)


@each_kind
def test_reader_refuses_an_envelope_when_it_is_of_another_network(kind: str) -> None:
    raw = sealed(kind).envelope.raw
    with pytest.raises(RemoteProtocolError) as caught:
        open_untrusted(raw, network=examples.OTHER_NETWORK, kinds=KINDS)
    assert caught.value.reason is Reason.NETWORK
    renamed = fields_of(kind)
    renamed[2] = examples.OTHER_NETWORK
    with pytest.raises(RemoteProtocolError) as caught:
        open_untrusted(encode(renamed), network=examples.OTHER_NETWORK, kinds=KINDS)
    assert caught.value.reason is Reason.SIGNATURE


@each_kind
def test_reader_refuses_an_envelope_when_it_is_replayed_as_another_type(kind: str) -> None:
    for other in KINDS - {kind}:
        fields = fields_of(kind)
        fields[1] = other
        assert reason_of(opened, encode(fields)) is Reason.SIGNATURE


@each_kind
def test_reader_refuses_an_envelope_when_its_type_is_not_allowed_here(kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_untrusted(sealed(kind).envelope.raw, network=examples.NETWORK, kinds=KINDS - {kind})
    assert caught.value.reason is Reason.TYPE


@each_kind
def test_reader_refuses_an_envelope_when_another_key_is_named_as_its_signer(kind: str) -> None:
    fields = fields_of(kind)
    fields[3] = examples.STRANGER.peer_id
    assert reason_of(opened, encode(fields)) is Reason.SIGNATURE


def test_reader_refuses_an_envelope_when_its_shape_is_wrong() -> None:
    good = fields_of("voucher")
    for place, value in (
        (0, 2),
        (0, True),
        (0, None),
        (1, b"voucher"),
        (3, bytes(31)),
        (4, "body"),
        (5, bytes(63)),
        (5, bytes(65)),
    ):
        fields = list(good)
        fields[place] = value
        assert reason_of(opened, encode(fields)) is Reason.ENVELOPE, place
    for fields in ([], good[:5], [*good, None]):
        assert reason_of(opened, encode(fields)) is Reason.ENVELOPE
    assert reason_of(opened, encode({"a": 1})) is Reason.ENVELOPE


def test_reader_refuses_an_envelope_when_its_body_is_over_the_bound_of_its_type() -> None:
    voucher, advert = bytes(limits.BODY_BYTES_MAX), bytes(limits.ADVERT_BYTES_MAX)
    assert (
        reason_of(opened, forced("voucher", voucher)) is None
    )  # the body's own form is judged by the next reader
    assert reason_of(opened, forced("voucher", voucher + b"\x00")) is Reason.SIZE
    assert reason_of(opened, forced("advert", advert)) is None
    assert reason_of(opened, forced("advert", advert + b"\x00")) is Reason.SIZE


def test_sealing_is_refused_when_the_body_is_too_long() -> None:
    for kind in ("advert", "contract"):
        with pytest.raises(LocalProtocolError):
            seal(kind, bytes(body_bytes_max(kind)), network=examples.NETWORK, signer=examples.REQUESTER)


def test_message_id_stays_when_the_signer_signs_again_in_another_way() -> None:
    envelope = sealed("voucher").envelope
    other = replace(envelope, raw=b"")
    assert opened(envelope.raw).message_id == other.message_id
    again = seal("voucher", body_of("voucher"), network=examples.NETWORK, signer=examples.STRANGER)
    assert again.message_id != envelope.message_id  # the same words by somebody else are another message


def test_network_ids_differ_when_configurations_do() -> None:
    ids = {network_id({"name": "a"}), network_id({"name": "b"}), network_id({"name": "a", "x": 1}), network_id({})}
    assert len(ids) == 4


def test_network_of_an_envelope_is_refused_when_it_is_no_id() -> None:
    fields = fields_of("voucher")
    assert network_of_untrusted(encode(fields)) == examples.NETWORK
    fields[2] = bytes(31)
    assert reason_of(network_of_untrusted, encode(fields)) is Reason.ENVELOPE
