"""Laws that hold for every message type alike."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from protocol.advert import DeviceClaim, Offer
from protocol.encoding import Plain, decode_untrusted, encode
from protocol.errors import Reason
from protocol.framing import encode_frame
from protocol.messages import MESSAGE_TYPES
from protocol.schema import Message, to_message_untrusted, to_plain
from protocol.signed import SignedMessage, read_untrusted
from protocol.task import GenerateInput, GenerateOutput, Sampling
from scripts.spec import examples
from tests.protocol.fakes import body_of, mutants, reason_of, resealed, sealed
from tests.protocol.fakes_spec import rows, section

each_kind = pytest.mark.parametrize("kind", sorted(MESSAGE_TYPES))


def read(kind: str, raw: bytes) -> SignedMessage:
    return read_untrusted(raw, network=examples.NETWORK, allowed=[MESSAGE_TYPES[kind]]).message


def test_every_message_type_has_an_example_under_its_own_name() -> None:
    assert set(examples.messages()) == set(MESSAGE_TYPES)
    assert all(MESSAGE_TYPES[kind].kind == kind for kind in MESSAGE_TYPES)


@each_kind
def test_message_is_the_same_when_it_has_travelled(kind: str) -> None:
    signed = sealed(kind)
    assert read(kind, signed.envelope.raw) == signed.message
    body = decode_untrusted(signed.envelope.body)
    assert encode(to_plain(to_message_untrusted(body, MESSAGE_TYPES[kind]))) == signed.envelope.body


@each_kind
def test_message_is_refused_when_a_field_is_missing_or_unknown_or_nil(kind: str) -> None:
    body = body_of(kind)
    optional = {field.encode_name for field in fields(MESSAGE_TYPES[kind]) if not field.required}
    for name in body:
        short = {key: value for key, value in body.items() if key != name}
        assert (reason_of(lambda raw: read(kind, raw), resealed(kind, short)) is None) == (name in optional)
        assert reason_of(lambda raw: read(kind, raw), resealed(kind, {**body, name: None})) is Reason.SCHEMA
    assert reason_of(lambda raw: read(kind, raw), resealed(kind, {**body, "tip": 1})) is Reason.SCHEMA
    assert read(kind, resealed(kind, {**body, "x_tip": [None, {"any": 1}]})) == sealed(kind).message


@each_kind
def test_message_is_refused_when_a_field_has_another_type(kind: str) -> None:
    body = body_of(kind)
    for name, value in body.items():
        others: tuple[Plain, ...] = (True, 1, "text", b"bytes", [], {}, -1, 1 << 63)
        for other in others:
            if type(other) is not type(value) or other in (-1, 1 << 63) or other == "text":
                raw = resealed(kind, {**body, name: other})
                is_free = name in ("profile", "name", "message") and other == "text"
                assert (reason_of(lambda raw: read(kind, raw), raw) is None) == is_free, (name, other)


@each_kind
def test_body_reader_raises_one_class_when_fed_mutants(kind: str) -> None:
    def read_body(data: bytes) -> Message:
        return to_message_untrusted(decode_untrusted(data), MESSAGE_TYPES[kind])

    for mutant in mutants(kind.encode(), sealed(kind).envelope.body, 2_000):
        reason = reason_of(read_body, mutant)
        assert reason in (None, Reason.ENCODING, Reason.SCHEMA, Reason.SIZE)


@pytest.mark.slow
@each_kind
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=2),
        max_leaves=4,
    ),
    data=st.data(),
)
def test_schema_raises_one_class_when_a_field_holds_anything(kind: str, value: Any, data: st.DataObject) -> None:
    body = body_of(kind)
    name = data.draw(st.sampled_from(sorted(body)))
    changed = {**body, name: value}
    reason = reason_of(lambda _: to_message_untrusted(changed, MESSAGE_TYPES[kind]), b"")
    assert reason in (None, Reason.SCHEMA)


def unbounded(kind: Any, path: str) -> list[str]:  # Any: type annotations of every form
    """Return the fields of a type that have no bound."""
    info = msgspec.inspect.type_info(kind)
    return list(_unbounded(info, path))


def _unbounded(info: Any, path: str) -> Any:  # Any: msgspec's tree of type descriptions
    match info:
        case msgspec.inspect.StructType(fields=parts):
            for part in parts:
                yield from _unbounded(part.type, f"{path}.{part.encode_name}")
        case msgspec.inspect.UnionType(types=choices):
            for choice in choices:
                yield from _unbounded(choice, path)
        case msgspec.inspect.IntType(ge=low, le=high):
            if low is None or high is None:
                yield path
        case msgspec.inspect.StrType(max_length=most, pattern=pattern):
            if most is None and pattern is None:
                yield path
        case msgspec.inspect.BytesType(max_length=most):
            if most is None:
                yield path
        case msgspec.inspect.VarTupleType(item_type=item, max_length=most):
            if most is None:
                yield path
            yield from _unbounded(item, f"{path}[]")
        case msgspec.inspect.BoolType() | msgspec.inspect.NoneType() | msgspec.inspect.EnumType():
            pass
        case msgspec.inspect.LiteralType():
            pass
        case _:
            yield f"{path}: {info}"


@each_kind
def test_every_field_has_a_bound(kind: str) -> None:
    assert unbounded(MESSAGE_TYPES[kind], kind) == []


@each_kind
def test_specification_lists_every_field(kind: str) -> None:
    if kind == "advert":
        text = section("06-adverts.md", "`advert`")
        written = rows(text[: text.index("device:")])
    else:
        page = "09-settlement.md" if kind in ("tally", "statement", "settled") else "03-messages.md"
        text = section(page, f"`{kind}`")
        written = rows(text[: text.index("\n| code |")] if kind == "decline" else text)
    described = fields(MESSAGE_TYPES[kind])
    assert list(written) == [field.encode_name for field in described]
    optional = {name for name, cells in written.items() if cells[0].endswith("?")}
    assert optional == {field.encode_name for field in described if not field.required}


@pytest.mark.parametrize(
    ("page", "title", "start", "kind"),
    [
        ("06-adverts.md", "`advert`", "device:", DeviceClaim),
        ("06-adverts.md", "`advert`", "offer:", Offer),
        ("04-tasks.md", "Input of", "", GenerateInput),
        ("04-tasks.md", "Output of", "", GenerateOutput),
        ("04-tasks.md", "Sampling", "", Sampling),
    ],
)
def test_specification_lists_every_field_inside(page: str, title: str, start: str, kind: type[Message]) -> None:
    text = section(page, title)
    text = text[text.index(start) :]
    written = rows(text[: text.index("\noffer:")] if start == "device:" else text)
    assert list(written) == [field.encode_name for field in fields(kind)]
    optional = {name for name, cells in written.items() if cells[0].endswith("?")}
    assert optional == {field.encode_name for field in fields(kind) if not field.required}


def test_bytes_in_the_specification_are_those_of_the_golden_job() -> None:
    text = section("03-messages.md", "One job, byte by byte")
    steps = [encode_frame(step.frame) for step in examples.whole_job().steps]
    contract = sealed("contract").envelope
    for said in (
        f"{len(steps[2]):08x}", f"c5{len(contract.body):04x}", f"{len(steps[4]):08x}", steps[4][5:15].hex(),
        f"{len(steps[7]):08x}{steps[7][:5].hex()}", steps[7][5:].hex(),
    ):  # fmt: skip
        assert " ".join(said[at : at + 2] for at in range(0, len(said), 2)) in text.replace("  ", " ")
