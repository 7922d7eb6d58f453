from typing import Annotated

import pytest
from msgspec import Meta

from protocol.encoding import Plain
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.schema import Message, to_message_untrusted, to_plain
from protocol.task import ChatMessage, GenerateOutput


class Inner(Message, frozen=True, kw_only=True):
    count: Annotated[int, Meta(ge=0, le=9)]


class Outer(Message, frozen=True, kw_only=True):
    inner: Inner
    rows: Annotated[tuple[Inner, ...], Meta(max_length=2)] = ()
    note: str | None = None


def test_message_leaves_out_what_is_none() -> None:
    assert to_plain(Outer(inner=Inner(count=1))) == {"inner": {"count": 1}, "rows": []}
    assert to_message_untrusted({"inner": {"count": 1}}, Outer) == Outer(inner=Inner(count=1))


def test_extension_is_ignored_in_every_map() -> None:
    value: Plain = {"inner": {"count": 1, "x_a": None}, "rows": [{"count": 2, "x_b": [1]}], "x_c": {"count": "?"}}
    assert to_message_untrusted(value, Outer) == Outer(inner=Inner(count=1), rows=(Inner(count=2),))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"inner": {"count": 1}, "note": None},
        {"inner": {"count": 1, "y": 1}},
        {"inner": {"count": 10}},
        {"inner": {"count": True}},
        {"inner": {"count": "1"}},
        {"inner": {"count": 1}, "rows": [{"count": 1}] * 3},
        {"inner": {"count": 1}, "rows": [None]},
        {"inner": {"count": 1}, "X_a": 1},
    ],
    ids=repr,
)
def test_value_is_refused_when_it_does_not_fit_the_schema(value: Plain) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        to_message_untrusted(value, Outer)
    assert caught.value.reason is Reason.SCHEMA


def test_refusal_does_not_quote_the_peer() -> None:
    secret = "my secret - at `$.x`"
    values: list[Plain] = [{"role": secret, "content": ""}, {"role": "user", "content": "", "my secret": 1}]
    for value in values:
        with pytest.raises(RemoteProtocolError) as caught:
            to_message_untrusted(value, ChatMessage)
        assert "secret" not in str(caught.value)


def test_own_message_is_refused_when_it_breaks_its_bounds() -> None:
    with pytest.raises(LocalProtocolError):
        to_plain(Inner(count=10))
    with pytest.raises(LocalProtocolError):
        to_plain(GenerateOutput(tokens=(1,) * 257, text=""))
