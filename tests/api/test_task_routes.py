import base64
import json
import struct
from typing import Any

import pytest
import trio

from node.market.order import InputRefusedError, Output, PromptTooLongError, WrongTaskError
from protocol import limits
from protocol.tasks.classify import ClassifyInput, ClassifyOutput, Image, ImageClass
from protocol.tasks.embed import EmbedInput, EmbedOutput
from protocol.tasks.forward import ForwardInput, split_tensors
from protocol.tasks.registry import ItemInput, ItemOutput
from protocol.tasks.vad import VadInput, VadOutput
from scripts.spec.items import tensor_file
from tests.api.fakes import (
    ASKING,
    CONTRACT,
    CONTRACTED,
    FINISHED,
    JOB,
    PEER_TEXT,
    RECEIPT,
    TOKEN,
    ScriptedMarket,
    serve_node,
)

TENSORS = tensor_file(("h", "F32", (2,), bytes(8)))
LONG = tensor_file(("h", "U8", (50_000,), bytes(50_000)))
AUDIO = bytes(2 * 16_000)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


CLASSES = (
    ImageClass(index=3, label="cat", probability_ppm=750_000),
    ImageClass(index=9, label="", probability_ppm=1),
)
PIXELS = {"width": 2, "height": 1, "rgb": base64_of(bytes(range(6)))}
# A body, the order that it makes, what the market answers, and what the client gets.
CASES: list[tuple[str, dict[str, Any], ItemInput, list[ItemOutput], dict[str, Any]]] = [
    (
        "embed",
        {"texts": ["a", "b"]},
        EmbedInput(texts=("a", "b")),
        [EmbedOutput(vector=struct.pack("<2f", 0.5, -0.25)), EmbedOutput(vector=struct.pack("<f", 1.0))],
        {"vectors": [{"index": 0, "vector": [0.5, -0.25]}, {"index": 1, "vector": [1.0]}]},
    ),
    (
        "classify",
        {"images": [PIXELS], "top": 2},
        ClassifyInput(images=(Image(width=2, height=1, rgb=bytes(range(6))),), top=2),
        [ClassifyOutput(classes=CLASSES)],
        {
            "images": [
                {
                    "index": 0,
                    "classes": [
                        {"index": 3, "label": "cat", "probability": 0.75},
                        {"index": 9, "label": None, "probability": 1e-6},
                    ],
                }
            ]
        },
    ),
    (
        "vad",
        {"samples": base64_of(AUDIO), "threshold": 0.6},
        VadInput(samples=AUDIO),
        # One second: the 32nd window is a quarter of audio and three of silence.
        [VadOutput(speech_milli=(0, 599, *[600] * 10)), VadOutput(speech_milli=(*[0] * 10, *[900] * 10))],
        {
            "segments": [{"start_ms": 64, "end_ms": 384}, {"start_ms": 704, "end_ms": 1000}],
            "duration_ms": 1000,
            "window_ms": 32,
            "speech_milli": [0, 599, *[600] * 10, *[0] * 10, *[900] * 10],
        },
    ),
    (
        "forward",
        {"tensors": base64_of(TENSORS), "output_bytes_max": 60_000},
        ForwardInput(tensors=TENSORS, output_bytes_max=60_000),
        [*split_tensors(LONG)],
        {"tensors": base64_of(LONG)},
    ),
]


@pytest.mark.parametrize(("task", "body", "asked", "outputs", "told"), CASES, ids=[it[0] for it in CASES])
async def test_client_gets_the_result_and_what_it_cost(
    nursery: trio.Nursery,
    task: str,
    body: dict[str, Any],
    asked: ItemInput,
    outputs: list[ItemOutput],
    told: dict[str, Any],
) -> None:
    script = [ASKING, CONTRACTED, *(Output(result=it) for it in outputs), FINISHED]
    node = await serve_node(nursery, market=(market := ScriptedMarket(script)))
    reply = await node.call(
        "POST", f"/api/v1/tasks/{task}", body={"model": "tiny", "souk": {"on": "remote", "max_price": 9}, **body}
    )
    assert reply.status == 200, reply.body
    found = reply.json
    souk = found.pop("souk")
    assert (souk["peer"], souk["contract_id"], souk["cost_microcredits"]) == (PEER_TEXT, CONTRACT.hex(), 7)
    assert found == {"schema": 1, "task": task, "model": "tiny", "usage": {"units_in": 3, "units_out": 2}, **told}
    (order,) = market.orders
    assert (order.task_input, order.tokens_out_max) == (asked, asked.units_out)
    assert (order.where, order.price_max_microcredits) == ("remote", 9)


async def test_answer_to_tensors_may_be_as_long_as_travels_unless_the_client_says_less(
    nursery: trio.Nursery,
) -> None:
    node = await serve_node(nursery, market=(market := ScriptedMarket()))
    await node.call("POST", "/api/v1/tasks/forward", body={"model": "tiny", "tensors": base64_of(TENSORS)})
    assert market.orders[0].tokens_out_max == limits.INPUT_BYTES_MAX // limits.KIB


@pytest.mark.parametrize(
    ("task", "body", "param"),
    [
        ("embed", {"texts": []}, "texts"),
        ("embed", {"texts": "a"}, "texts"),
        ("embed", {"texts": ["a"] * 2049}, "texts"),
        ("embed", {"texts": ["x" * (1 << 20)]}, "texts"),
        ("embed", {"texts": ["a"], "souk": {"price": 1}}, "souk"),
        ("classify", {"images": [{**PIXELS, "width": 3}]}, "images[0]"),
        ("classify", {"images": [PIXELS], "top": 65}, "top"),
        ("vad", {"samples": "AAA"}, "samples"),
        ("vad", {"samples": base64_of(bytes(3))}, "samples"),
        ("vad", {"samples": base64_of(bytes((1 << 20) + 2))}, "samples"),
        # It has the length that may travel, and needs some bytes around it.
        ("vad", {"samples": base64_of(bytes(1 << 20))}, "samples"),
        ("forward", {"tensors": base64_of(b"PK\3\4")}, "tensors"),
        ("forward", {"tensors": base64_of(TENSORS), "output_bytes_max": 0}, "output_bytes_max"),
    ],
)
async def test_client_is_told_which_field_is_wrong(
    nursery: trio.Nursery, task: str, body: dict[str, Any], param: str
) -> None:
    node = await serve_node(nursery, market=(market := ScriptedMarket()))
    reply = await node.call("POST", f"/api/v1/tasks/{task}", body={"model": "tiny", **body})
    assert (reply.status, reply.error["param"]) == (400, param), reply.body
    assert not market.orders


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (WrongTaskError("tiny", wanted="vad", offered=("generate",)), "task_not_served", "model"),
        (PromptTooLongError("256 units"), "context_length_exceeded", "samples"),
        (InputRefusedError("no whole window"), "input_refused", "samples"),
    ],
)
async def test_client_is_told_why_the_market_refused(
    nursery: trio.Nursery, error: Exception, code: str, param: str
) -> None:
    node = await serve_node(nursery, market=ScriptedMarket([ASKING, error]))
    reply = await node.call("POST", "/api/v1/tasks/vad", body={"model": "tiny", "samples": base64_of(AUDIO)})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


async def test_answer_names_job_peer_and_receipt_in_its_headers(nursery: trio.Nursery) -> None:
    made = Output(result=EmbedOutput(vector=struct.pack("<f", 1.0)))
    node = await serve_node(nursery, market=ScriptedMarket([ASKING, CONTRACTED, made, FINISHED]))
    for path, body in (("/api/v1/tasks/embed", {"texts": ["a"]}), ("/v1/embeddings", {"input": "a"})):
        reply = await node.call("POST", path, body={"model": "tiny", **body})
        named = [reply.headers[f"x-souk-{name}"] for name in ("job-id", "peer", "receipt")]
        assert named == [JOB.hex(), PEER_TEXT, RECEIPT.hex()]


async def test_order_is_cancelled_when_its_client_goes(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, market=(market := ScriptedMarket([CONTRACTED, trio.Event()])))
    body = json.dumps({"model": "tiny", "texts": ["a"]}).encode()
    head = f"POST /api/v1/tasks/embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    client = await node.open(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    with trio.fail_after(5):
        await market.taken.wait()
        await client.aclose()
        await market.cancelled.wait()


async def test_unknown_task_is_not_found(nursery: trio.Nursery) -> None:
    reply = await (await serve_node(nursery)).call("POST", "/api/v1/tasks/paint", body={"model": "tiny"})
    assert (reply.status, reply.error["code"]) == (404, "not_found")
