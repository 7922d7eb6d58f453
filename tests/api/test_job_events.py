"""Steps of jobs as a client sees them come."""

import json
from functools import partial

import trio
import trio.testing

from node.api.job_events import PATH, publish_step
from node.api.sse import KEEP_ALIVE
from node.market.journal import Journal
from tests.api.fakes import ASKING, CONTRACT, CONTRACTED, FINISHED, TOKEN, Node, serve_node
from tests.api.test_job_routes import purchase
from tests.api.test_openapi import DOCUMENT, find, validate


async def follow(node: Node, *, last_id: str = "") -> trio.SocketStream:
    head = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    return await node.open(f"{head}Last-Event-ID: {last_id}\r\n\r\n".encode())


async def read_until(client: trio.SocketStream, end: bytes, count: int = 1) -> bytes:
    heard = b""
    with trio.fail_after(5):
        while heard.count(end) < count:
            more = await client.receive_some()
            assert more
            heard += more
    return heard


async def test_follower_sees_each_step_of_an_order_and_its_end(nursery: trio.Nursery) -> None:
    node, journal = await serve_node(nursery), Journal()
    journal.follow(partial(publish_step, node.feed))
    client = await follow(node)
    await read_until(client, KEEP_ALIVE)
    record = purchase(7, is_open=True)
    record.steps.clear()
    journal.begin_order(record)
    record.hear(ASKING, record.started_ms)
    record.hear(CONTRACTED, record.started_ms)
    record.end("failed", record.started_ms, code="worker_died", message="it died")
    text = (await read_until(client, b"event: job", 3)).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["step"]["step"] for event in events] == ["asking", "contracted", "failed"]
    assert [event["job"]["state"] for event in events] == ["asking", "asking", "failed"]
    assert events[1]["step"]["contract_id"] == CONTRACT.hex() and events[2]["job"]["code"] == "worker_died"
    document = (await node.call("GET", DOCUMENT)).json
    schema = find(document, "GET", PATH)["responses"]["200"]["content"]["text/event-stream"]["schema"]
    for event in events:
        validate(document, schema, event)
    await client.aclose()


async def test_follower_hears_each_step_once_and_then_the_end_when_all_went_well(nursery: trio.Nursery) -> None:
    node, journal = await serve_node(nursery), Journal()
    journal.follow(partial(publish_step, node.feed))
    client = await follow(node)
    await read_until(client, KEEP_ALIVE)
    record = purchase(7, is_open=True)
    journal.begin_sale(CONTRACT, record)
    record.hear(FINISHED, record.started_ms)
    record.end("closed", record.started_ms)
    text = (await read_until(client, b"event: job", 4)).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    told = [event["step"] and event["step"]["step"] for event in events]
    assert told == ["asking", "contracted", "paid", None]
    assert events[-1]["job"]["state"] == "closed" and events[-1]["job"]["ended_ms"] is not None
    await client.aclose()


async def test_follower_gets_what_it_missed_when_it_comes_back(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for number in (1, 2, 3):
        record = purchase(number)
        publish_step(node.feed, record, record.steps[-1])
    client = await follow(node, last_id="f-2")
    text = await read_until(client, b"event: job")
    assert b"id: f-3" in text and b"id: f-2" not in text
    await client.aclose()


async def test_nothing_is_left_when_a_follower_leaves(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    client = await follow(node)
    await read_until(client, KEEP_ALIVE)
    assert node.feed.readers == 1
    await client.aclose()
    with trio.fail_after(1):
        while node.feed.readers:
            await trio.testing.wait_all_tasks_blocked()


async def test_quiet_stream_is_kept_alive(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    client = await follow(await serve_node(nursery))
    heard = b""
    while heard.count(KEEP_ALIVE) < 3:
        heard += await client.receive_some()
    await client.aclose()
