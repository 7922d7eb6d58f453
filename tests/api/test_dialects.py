"""Raw prompts through the official client; what both dialects share is tested with chats."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import openai
import pytest
import trio

from node.api.orders import TEXT_TOKENS_OUT_DEFAULT
from node.market.order import (
    InputRefusedError,
    JobFailedError,
    NobodyWillingError,
    Output,
    PromptTooLongError,
    UnknownModelError,
)
from protocol.task import GenerateInput
from tests.api.fakes import (
    ASKING,
    CONTRACTED,
    JOB,
    PEER_TEXT,
    TOKEN,
    Node,
    ScriptedMarket,
    serve_node,
)

T = TypeVar("T")

ERRORS = [
    (UnknownModelError("tiny", ("big",)), openai.NotFoundError, "model_not_found", "model"),
    (NobodyWillingError(()), openai.InternalServerError, "no_capacity", None),
    (PromptTooLongError("64 tokens fit"), openai.BadRequestError, "context_length_exceeded", "prompt"),
    (InputRefusedError("no tokens"), openai.BadRequestError, "input_refused", "prompt"),
    (JobFailedError("it died", code="worker_died"), openai.InternalServerError, "peer_failed", None),
]


async def ask(node: Node, work: Callable[[openai.OpenAI], T]) -> T:
    """Run ``work`` with the official client in a thread."""
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key=TOKEN, max_retries=0)
    return await trio.to_thread.run_sync(functools.partial(work, client))


def complete(client: openai.OpenAI, **fields: Any) -> Any:  # Any: its overloads know no souk block
    return client.completions.create(**{"model": "tiny", "prompt": "Once upon", **fields})


def stream(client: openai.OpenAI) -> list[Any]:
    return list(complete(client, stream=True, stream_options={"include_usage": True}))


async def test_client_gets_whole_text_with_usage_and_souk_block(nursery: trio.Nursery) -> None:
    answer = await ask(await serve_node(nursery), complete)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 2, 5)
    assert answer.souk["job_id"] == JOB.hex() and answer.souk["peer"] == PEER_TEXT


async def test_client_gets_text_then_usage_when_it_streams(nursery: trio.Nursery) -> None:
    chunks = await ask(await serve_node(nursery), stream)
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["Hel", "lo", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"text_completion"}
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 5
    assert chunks[-1].souk["cost_microcredits"] == 7


@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"]])
async def test_market_gets_the_raw_prompt_and_its_stops(nursery: trio.Nursery, prompt: str | list[str]) -> None:
    node = await serve_node(nursery)
    await ask(node, functools.partial(complete, prompt=prompt, stop=["\n", "END"], seed=7, temperature=0.5))
    (order,) = node.market.orders
    assert order.task_input == GenerateInput(prompt="Once upon", stop=("\n", "END"))
    assert (order.sampling.seed, order.sampling.temperature_milli) == (7, 500)
    assert order.tokens_out_max == TEXT_TOKENS_OUT_DEFAULT


async def test_prompt_is_told_of_its_length_and_of_fields_that_change_nothing(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 3, "best_of": 2, "echo": True, "suffix": None}
    reply = await node.call("POST", "/v1/completions", body=body)
    assert reply.status == 200 and reply.headers["x-souk-ignored"] == "best_of, echo"
    assert node.market.orders[0].tokens_out_max == 3


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(None, "prompt"), ("", "prompt"), ([], "prompt"), (["a", "b"], "prompt"), ([1, 2], "prompt[0]")],
)
async def test_prompt_is_refused_when_it_is_not_one_text(
    nursery: trio.Nursery, prompt: object, param: str
) -> None:
    node = await serve_node(nursery)
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(node, functools.partial(complete, prompt=prompt))
    assert caught.value.param == param and not node.market.orders


@pytest.mark.parametrize("asker", [complete, stream])
@pytest.mark.parametrize(("error", "raised", "code", "param"), ERRORS)
async def test_client_raises_its_own_error_when_the_order_fails_before_output(
    nursery: trio.Nursery,
    asker: Callable[[openai.OpenAI], Any],
    error: Exception,
    raised: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, error]))
    with pytest.raises(raised) as caught:
        await ask(node, asker)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_client_raises_after_the_text_so_far_when_the_job_fails_in_mid_stream(nursery: trio.Nursery) -> None:
    script = [CONTRACTED, Output(tokens=(1,), text="Hel"), JobFailedError("it died", code="lost")]
    told: list[str] = []

    def read(client: openai.OpenAI) -> None:
        told.extend(chunk.choices[0].text for chunk in complete(client, stream=True))

    with pytest.raises(openai.APIError) as caught:
        await ask(await serve_node(nursery, ScriptedMarket(script)), read)
    assert told == ["Hel"] and caught.value.code == "peer_failed"
