"""The official client against a real server: what its users see."""

import functools
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import openai
import pytest
import trio

from node.api.errors import to_api_error
from node.api.services import Services
from node.config import ApiSection
from node.market.order import (
    DeadlineError,
    InputRefusedError,
    JobFailedError,
    NobodyWillingError,
    Output,
    PassedOver,
    PromptTooLongError,
    UnknownModelError,
)
from protocol.errors import DeclineCode
from tests.api.fakes import (
    ANSWERED,
    ASKING,
    CONTRACT,
    CONTRACTED,
    JOB,
    PEER,
    PEER_TEXT,
    RECEIPT,
    TOKEN,
    Node,
    ScriptedMarket,
    Step,
    chat_body,
    fake_services,
    serve_node,
)

T = TypeVar("T")

SOUK = {
    "job_id": JOB.hex(),
    "peer": PEER_TEXT,
    "contract_id": CONTRACT.hex(),
    "receipt_id": RECEIPT.hex(),
    "cost_microcredits": 7,
    "first_token_ms": 11,
    "duration_ms": 12,
}
REFUSAL = PassedOver(peer_id=PEER, code=DeclineCode.BUSY, message="8 of 8 slots are taken")

ERRORS = [
    (UnknownModelError("tiny", ("big",)), openai.NotFoundError, 404, "model_not_found", {"available": ["big"]}),
    (UnknownModelError("a", (), here=True), openai.NotFoundError, 404, "model_not_found", {"available": []}),
    (
        NobodyWillingError((REFUSAL,)),
        openai.InternalServerError,
        503,
        "no_capacity",
        {"refusals": [{"peer": PEER_TEXT, "code": "busy", "message": "8 of 8 slots are taken"}]},
    ),
    (PromptTooLongError("64 tokens fit"), openai.BadRequestError, 400, "context_length_exceeded", None),
    (InputRefusedError("roles must alternate"), openai.BadRequestError, 400, "input_refused", None),
    (DeadlineError("600 s passed"), openai.InternalServerError, 504, "deadline", None),
    (
        JobFailedError("it died", code="worker_died"),
        openai.InternalServerError,
        502,
        "peer_failed",
        {"cause": "worker_died"},
    ),
]


async def ask(node: Node, work: Callable[[openai.OpenAI], T]) -> T:
    """Run ``work`` with the official client in a thread."""
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key=TOKEN, max_retries=0)
    return await trio.to_thread.run_sync(functools.partial(work, client))


def complete(client: openai.OpenAI) -> Any:  # Any: its overloads know no souk block
    return client.chat.completions.create(**chat_body())  # type: ignore[call-overload]  # as above


def stream(client: openai.OpenAI) -> list[Any]:
    chunks = client.chat.completions.create(  # type: ignore[call-overload]  # as above
        **chat_body(stream=True, stream_options={"include_usage": True})
    )
    return list(chunks)


async def test_client_gets_whole_answer_with_usage_and_souk_block(nursery: trio.Nursery) -> None:
    answer = await ask(await serve_node(nursery), complete)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
    }
    assert answer.souk == SOUK


async def test_client_gets_chunks_then_usage_when_it_streams(nursery: trio.Nursery) -> None:
    chunks = await ask(await serve_node(nursery), stream)
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["Hel", "lo", None]
    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant", None, None]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].souk == SOUK
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 5 and chunks[-1].souk == SOUK


async def test_stream_tells_phases_as_comments_and_ends_with_done(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, REFUSAL, *ANSWERED[1:]]))
    reply = await node.call("POST", "/v1/chat/completions", body=chat_body(stream=True))
    lines = reply.body.decode().split("\n\n")
    assert all(line.startswith(": souk ") for line in lines[:4])
    assert [json.loads(line.removeprefix(": souk ")) for line in lines[:4]] == [
        {"phase": "asking", "peers": 1},
        {"phase": "passed_over", "peer": PEER_TEXT, "code": "busy", "message": REFUSAL.message},
        {"phase": "quoted", "peer": PEER_TEXT, "price_max": 9},
        {
            "phase": "contracted",
            "peer": PEER_TEXT,
            "contract_id": CONTRACT.hex(),
            "price_max": 9,
            "tokens_in": 3,
        },
    ]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "usage" not in reply.body.decode()
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["x-souk-job-id"], reply.headers["x-souk-peer"]) == (JOB.hex(), PEER_TEXT)


async def test_whole_answer_names_job_peer_and_receipt_in_headers(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/v1/chat/completions", body=chat_body(user="me", tools=[], seed=None, x=1))
    assert reply.headers["x-souk-job-id"] == JOB.hex()
    assert reply.headers["x-souk-peer"] == PEER_TEXT
    assert reply.headers["x-souk-receipt"] == RECEIPT.hex()
    assert reply.headers["x-souk-ignored"] == "tools, user"
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("asker", [complete, stream])
@pytest.mark.parametrize(("error", "raised", "status", "code", "detail"), ERRORS)
async def test_client_raises_its_own_error_when_the_order_fails_before_output(
    nursery: trio.Nursery,
    asker: Callable[[openai.OpenAI], Any],
    error: Exception,
    raised: type[openai.APIStatusError],
    status: int,
    code: str,
    detail: object,
) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, error]))
    with pytest.raises(raised) as caught:
        await ask(node, asker)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert str(error) in caught.value.response.json()["error"]["message"]
    assert caught.value.response.headers["x-request-id"]
    assert caught.value.response.json().get("souk") == detail
    assert ("retry-after" in caught.value.response.headers) == (status == 503)


async def test_client_raises_after_the_text_so_far_when_the_job_fails_in_mid_stream(nursery: trio.Nursery) -> None:
    script: list[Step] = [CONTRACTED, Output(tokens=(1,), text="Hel"), JobFailedError("it died", code="lost")]
    node = await serve_node(nursery, ScriptedMarket(script))
    told: list[str] = []

    def read(client: openai.OpenAI) -> None:
        chunks = client.chat.completions.create(**chat_body(stream=True))  # type: ignore[call-overload]  # as above
        told.extend(chunk.choices[0].delta.content for chunk in chunks)

    with pytest.raises(openai.APIError) as caught:
        await ask(node, read)
    assert told == ["Hel"]
    assert caught.value.code == "peer_failed"
    assert isinstance(caught.value.body, dict) and caught.value.body["message"] == "it died"


async def test_client_gets_internal_error_when_the_market_has_a_bug(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, ZeroDivisionError("secret detail")]))
    reply = await node.call("POST", "/v1/chat/completions", body=chat_body())
    assert reply.status == 500 and reply.error["code"] == "internal_error"
    assert b"secret" not in reply.body
    assert (await node.call("GET", "/healthz")).status == 200


@pytest.mark.parametrize("streamed", [True, False])
async def test_job_is_cancelled_at_once_when_its_client_leaves(nursery: trio.Nursery, streamed: bool) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, CONTRACTED, trio.Event()]))
    client = await node.open_chat(stream=streamed)
    with trio.fail_after(1):
        await node.market.taken.wait()
        await client.aclose()
        await node.market.cancelled.wait()


@pytest.mark.parametrize("streamed", [True, False])
async def test_job_is_cancelled_when_its_client_leaves_before_a_contract(
    nursery: trio.Nursery, streamed: bool
) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, trio.Event()]))
    client = await node.open_chat(stream=streamed)
    with trio.fail_after(1):
        await node.market.taken.wait()
        await client.aclose()
        await node.market.cancelled.wait()


async def test_request_is_refused_when_the_queue_is_full(nursery: trio.Nursery) -> None:
    release = trio.Event()
    market = ScriptedMarket([ASKING, release, *ANSWERED])
    node = await serve_node(nursery, market, config=ApiSection(max_queue=1))
    client = await node.open_chat(stream=False)
    await market.taken.wait()
    reply = await node.call("POST", "/v1/chat/completions", body=chat_body())
    assert reply.status == 429 and reply.error["code"] == "queue_full"
    assert int(reply.headers["retry-after-ms"]) == 1000 * int(reply.headers["retry-after"]) > 0
    release.set()
    assert (await client.receive_some(15)).startswith(b"HTTP/1.1 200")
    assert (await node.call("POST", "/v1/chat/completions", body=chat_body())).status == 200
    await client.aclose()


async def test_client_lists_and_finds_models(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    listed = await ask(node, lambda client: client.models.list().data)
    assert [model.id for model in listed] == ["org/tiny"]
    found = await ask(node, lambda client: client.models.retrieve("org/tiny"))
    assert found.model_dump()["souk"]["peers"] == 2
    assert (await node.call("GET", f"/v1/models/{'ab' * 32}")).json["id"] == "org/tiny"
    missing = await node.call("GET", "/v1/models/huge")
    assert missing.status == 404 and missing.error["code"] == "model_not_found"
    assert missing.json["souk"] == {"available": ["org/tiny"]}


def test_seed_and_time_come_from_the_system_when_nothing_is_injected() -> None:
    fakes = fake_services()
    services = Services(
        **{it.name: getattr(fakes, it.name) for it in fields(fakes) if it.name not in ("draw_seed", "unix_s")}
    )
    assert 0 <= services.draw_seed() < 1 << 63
    assert services.draw_seed() != services.draw_seed()
    assert services.unix_s() > 1_700_000_000


def test_refusal_has_each_peers_reason_in_its_message_since_sdks_show_nothing_else() -> None:
    answer = to_api_error(NobodyWillingError((REFUSAL,))).answer()
    assert answer.error.message == f"none of 1 peers took the job: {PEER_TEXT} busy: 8 of 8 slots are taken"
