import base64
import functools
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import openai
import pytest
import trio

from node.market.order import InputRefusedError, Output, PromptTooLongError, WrongTaskError
from protocol.task import pack_tokens
from protocol.tasks.embed import EmbedInput, EmbedOutput
from tests.api.fakes import ASKING, CONTRACTED, FINISHED, TOKEN, Node, ScriptedMarket, serve_node

T = TypeVar("T")
VECTORS = ((0.5, -0.25), (1.0, 0.0))
SCRIPT = [
    ASKING,
    CONTRACTED,
    *(Output(result=EmbedOutput(vector=struct.pack("<2f", *vector))) for vector in VECTORS),
    FINISHED,
]


async def ask(node: Node, work: Callable[[openai.OpenAI], T]) -> T:
    """Run ``work`` with the official client in a thread."""
    client = openai.OpenAI(base_url=f"{node.url}/v1", api_key=TOKEN, max_retries=0)
    return await trio.to_thread.run_sync(functools.partial(work, client))


def embed(client: openai.OpenAI, **fields: Any) -> Any:  # Any: its overloads know no souk block
    return client.embeddings.create(**{"model": "tiny", "input": ["a", "b"], **fields})


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_client_gets_vectors_in_order_in_either_form(nursery: trio.Nursery, form: dict[str, str]) -> None:
    market = ScriptedMarket(SCRIPT)
    answer = await ask(await serve_node(nursery, market=market), lambda client: embed(client, **form))
    assert [entry.index for entry in answer.data] == [0, 1]
    if form.get("encoding_format") == "base64":
        found = [struct.unpack("<2f", base64.b64decode(entry.embedding)) for entry in answer.data]
    else:
        found = [tuple(entry.embedding) for entry in answer.data]
    assert tuple(found) == VECTORS
    assert (answer.object, answer.model, answer.usage.prompt_tokens) == ("list", "tiny", 3)
    assert market.orders[0].task_input == EmbedInput(texts=("a", "b"))
    assert market.orders[0].tokens_out_max == 2


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a", EmbedInput(texts=("a",))),
        ([1, 2], EmbedInput(tokens=(pack_tokens((1, 2)),))),
        ([[1, 2], [3]], EmbedInput(tokens=(pack_tokens((1, 2)), pack_tokens((3,))))),
    ],
)
async def test_input_may_be_a_text_or_token_ids(nursery: trio.Nursery, given: object, read: EmbedInput) -> None:
    market = ScriptedMarket(SCRIPT)
    await ask(await serve_node(nursery, market=market), lambda client: embed(client, input=given))
    assert market.orders[0].task_input == read


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 8}, "dimensions"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x" * (1 << 20)}, "input"),
        ({"input": []}, "input"),
    ],
)
async def test_client_is_told_which_field_is_wrong(nursery: trio.Nursery, fields: Any, param: str) -> None:
    node = await serve_node(nursery, market=ScriptedMarket(SCRIPT))
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(node, lambda client: embed(client, **fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WrongTaskError("tiny", wanted="embed", offered=("generate",)), "task_not_served"),
        (PromptTooLongError("256 tokens"), "context_length_exceeded"),
        (InputRefusedError("text 0 has no tokens"), "input_refused"),
    ],
)
async def test_client_is_told_why_the_market_refused(nursery: trio.Nursery, error: Exception, code: str) -> None:
    node = await serve_node(nursery, market=ScriptedMarket([ASKING, error]))
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(node, embed)
    assert caught.value.code == code
