"""Specs as people write them: what each orders, and every fault of a bad one at once."""

import json
from typing import Any

import pytest

from node.api.errors import ApiError
from node.api.job_specs import FORMS, find_problems, read_spec, spec_order, task_of_spec
from protocol.task import ChatMessage, GenerateInput
from tests.api.fakes import PEER, PEER_TEXT
from tests.api.test_task_routes import CASES

CHAT: dict[str, Any] = {"task": "generate", "model": "tiny", "messages": [{"role": "user", "content": "Hi."}]}
EMBED: dict[str, Any] = {"task": "embed", "model": "tiny", "texts": ["a"]}


def told(spec: dict[str, Any]) -> list[tuple[str, str]]:
    return [(it.field, it.message) for it in find_problems(spec)]


def test_spec_orders_what_it_says() -> None:
    spec = CHAT | {
        "max_tokens": 7, "temperature": 0, "top_p": 0.5, "stop": ["x"], "seed": 9,
        "souk": {"on": PEER_TEXT, "max_price": 5, "deadline_s": 30, "path": "quote"},
    }  # fmt: skip
    assert told(spec) == []
    order = spec_order(read_spec(json.dumps(spec).encode()), 1)
    assert order.task_input == GenerateInput(messages=(ChatMessage(role="user", content="Hi."),), stop=("x",))
    sampling = order.sampling
    assert (sampling.temperature_milli, sampling.top_p_milli, sampling.seed) == (0, 500, 9)
    assert (order.tokens_out_max, order.where, order.deadline_s, order.path) == (7, PEER, 30, "quote")
    assert order.price_max_microcredits == 5 and order.job_id is None


def test_spec_takes_a_fresh_seed_and_the_usual_length_when_it_says_nothing() -> None:
    for body in (CHAT, {"task": "generate", "model": "tiny", "prompt": "Once"}):
        order = spec_order(read_spec(json.dumps(body).encode()), 77)
        assert (order.sampling.seed, order.tokens_out_max) == (77, 512)


@pytest.mark.parametrize(("task", "body", "asked"), [it[:3] for it in CASES], ids=[it[0] for it in CASES])
def test_spec_of_each_task_is_the_body_of_its_endpoint(task: str, body: dict[str, Any], asked: object) -> None:
    spec = {"task": task, "model": "tiny", **body}
    assert told(spec) == []
    found = read_spec(json.dumps(spec).encode())
    assert task_of_spec(found) == task and spec_order(found, 0).task_input == asked


def test_every_fault_of_a_spec_is_told_at_once() -> None:
    spec = {
        "task": "generate", "modle": "tiny", "max_tokens": "many", "max_price": 5,
        "messages": [{"role": "user", "content": "Hi."}, {"role": "robot"}, {"role": "user", "content": 5}],
        "souk": {"max_prise": 1, "path": "quik", "deadline_s": -1},
    }  # fmt: skip
    assert told(spec) == [
        ("modle", "unknown key (did you mean model?)"),
        ("max_price", "unknown key (did you mean souk.max_price?)"),
        ("model", "is missing"),
        ("souk.max_prise", "unknown key (did you mean max_price?)"),
        ("souk.deadline_s", "expected float > 0.0 (got -1)"),
        ("souk.path", "expected one of auto, fast, quote (got 'quik')"),
        ("messages[1].role", "expected one of system, developer, user, assistant (got 'robot')"),
        ("messages[1].content", "is missing"),
        ("messages[2].content", "expected str | array, got int (got 5)"),
        ("max_tokens", "expected int, got str (got 'many')"),
    ]


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({}, "task", f"expected one of {', '.join(FORMS)}, got nothing"),
        ({"task": "generte"}, "task", "got 'generte' (did you mean generate?)"),
        ({"task": 5}, "task", "got 5"),
        (CHAT | {"prompt": "x"}, "messages", "expected either messages or a prompt, got both"),
        ({"task": "generate", "model": "tiny"}, "messages", "got neither"),
        (EMBED | {"souk": {"on": "nowhere"}}, "souk.on", "expected any, local, remote or a peer id"),
        (EMBED | {"texts": ["x" * (1 << 20)]}, "texts", "cannot travel"),
        (EMBED | {"max_tokens": 5}, "max_tokens", "unknown key"),
        ({"task": "vad", "model": "tiny", "samples": "%%"}, "samples", "invalid base64"),
    ],
)
def test_fault_of_a_spec_is_told_with_its_field(spec: dict[str, Any], field: str, message: str) -> None:
    ((found, text),) = told(spec)
    assert found == field and message in text
    with pytest.raises(ApiError) as refused:
        spec_order(read_spec(json.dumps(spec).encode()), 0)
    assert refused.value.status == 400
