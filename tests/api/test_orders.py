"""What a request becomes on the market, and which requests become nothing."""

from typing import Any

import msgspec
import pytest

from node.api.bodies import read_chat
from node.api.errors import ApiError
from node.api.orders import TOKENS_OUT_DEFAULT, to_order
from node.market.order import Order
from protocol.limits import INPUT_BYTES_MAX
from protocol.task import ChatMessage, Sampling
from tests.api.fakes import PEER, PEER_TEXT, chat_body


def order_of(**more: object) -> Order:
    request, _ = read_chat(msgspec.json.encode(chat_body(**more)))
    return to_order(request, 4242)


def test_order_has_the_defaults_of_openai_when_the_request_is_bare() -> None:
    order = order_of()
    assert order.sampling == Sampling(temperature_milli=1000, top_p_milli=1000, seed=4242)
    assert (order.tokens_out_max, order.where, order.path) == (TOKENS_OUT_DEFAULT, "any", "auto")
    assert (order.price_max_microcredits, order.deadline_s) == (None, 600.0)
    assert order.task_input.messages == (ChatMessage(role="user", content="Say hello."),)
    assert order.task_input.stop == ()


def test_order_takes_what_the_request_says() -> None:
    order = order_of(
        temperature=0.3,
        top_p=0.95,
        seed=7,
        max_tokens=5,
        stop=["a", "b"],
        n=1,
        souk={"on": PEER_TEXT, "max_price": 99, "deadline_s": 1.5, "path": "fast"},
    )
    assert order.sampling == Sampling(temperature_milli=300, top_p_milli=950, seed=7)
    assert order.tokens_out_max == 5 and order.task_input.stop == ("a", "b")
    assert (order.where, order.price_max_microcredits, order.deadline_s, order.path) == (PEER, 99, 1.5, "fast")


@pytest.mark.parametrize(
    ("more", "sampling"),
    [
        ({"temperature": 0, "seed": 0}, Sampling(temperature_milli=0, top_p_milli=1000, seed=0)),
        ({"top_p": 0, "seed": 1}, Sampling(temperature_milli=1000, top_p_milli=1, seed=1)),
        ({"seed": -1}, Sampling(temperature_milli=1000, top_p_milli=1000, seed=(1 << 63) - 1)),
    ],
)
def test_sampling_is_carried_in_whole_thousandths(more: dict[str, object], sampling: Sampling) -> None:
    assert order_of(**more).sampling == sampling


def test_newer_name_of_the_token_bound_wins() -> None:
    assert order_of(max_tokens=5, max_completion_tokens=6).tokens_out_max == 6


def test_text_parts_and_developer_role_are_understood() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    order = order_of(messages=[{"role": "developer", "content": parts, "name": "x"}], stop="end")
    assert order.task_input.messages == (ChatMessage(role="system", content="one\ntwo"),)
    assert order.task_input.stop == ("end",)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "x" * INPUT_BYTES_MAX}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 257}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"n": 2}, "n"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 9}, "stop"),
    ({"seed": 1 << 63}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"souk": {"on": "the moon"}}, "souk.on"),
    ({"souk": {"maxprice": 1}}, "souk"),
    ({"souk": {"max_price": -1}}, "souk.max_price"),
    ({"souk": {"deadline_s": 0}}, "souk.deadline_s"),
    ({"souk": {"path": "scenic"}}, "souk.path"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=[str(more)[:40] for more, _ in REFUSED])
def test_request_is_refused_with_the_field_at_fault(more: dict[str, object], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        order_of(**more)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\xfe", b'{"model":"\xff"}', b"[" * 100_000, b"{}"])
def test_request_is_refused_when_it_is_no_chat_request(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat(data)
    assert caught.value.status == 400


def test_missing_field_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        read_chat(b'{"model":"tiny"}')
    assert caught.value.param == "messages"


def test_lone_surrogate_never_becomes_an_order() -> None:
    data = rb'{"model":"tiny","messages":[{"role":"user","content":"\ud800"}]}'
    with pytest.raises(ApiError):
        to_order(read_chat(data)[0], 0)


def test_fields_that_change_nothing_are_named_when_they_have_a_value() -> None:
    body = chat_body(tools=[], user="me", logprobs=None, some_field_of_tomorrow=1, seed=1)
    assert read_chat(msgspec.json.encode(body))[1] == ("tools", "user")
