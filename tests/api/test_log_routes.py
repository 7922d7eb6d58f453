"""The log over HTTP: which lines are given, and that a follower hears those that come."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from node.api.intake import READERS_MAX
from node.api.log_routes import EVENTS_PATH
from node.api.sse import KEEP_ALIVE
from node.logs import LogRing
from tests.api.fakes import CONTRACT, JOB, TOKEN, Node, serve_node
from tests.api.test_job_routes import purchase
from tests.api.test_openapi import DOCUMENT, find, validate

log = logging.getLogger("node.tests")


@pytest.fixture
async def node(nursery: trio.Nursery) -> AsyncIterator[Node]:
    node = await serve_node(nursery)
    with node.log_lines.listening():
        yield node


@pytest.fixture(autouse=True)
def everything_is_logged() -> Iterator[None]:
    before = log.level
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(before)


def said(lines: list[dict[str, object]]) -> list[str]:
    return [str(it["text"]).partition("node.tests ")[2] for it in lines]


async def lines(node: Node, query: str = "") -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await node.call("GET", f"/api/v1/logs?{query}")).json["lines"]
    return found


async def test_log_gives_lines_after_a_number(node: Node) -> None:
    for name in ("first", "second"):
        log.error(name, extra={"peer": "12D3"})
    found = await lines(node, "after=0")
    assert said(found) == ["first  peer=12D3", "second  peer=12D3"] and found[0]["level"] == "error"
    assert [it["number"] for it in await lines(node, f"after={found[0]['number']}")] == [found[1]["number"]]


async def test_log_gives_only_what_is_asked_for(node: Node) -> None:
    log.debug("small", extra={"cause": "Straße"})
    log.warning("middle")
    log.critical("large")
    assert said(await lines(node, "level=warning")) == ["middle", "large"]
    assert said(await lines(node, "grep=STRASSE")) == ["small  cause=Straße"]
    assert said(await lines(node, "limit=1")) == ["large"]
    assert said(await lines(node, "limit=1&level=debug&grep=m")) == ["middle"]
    assert len(await lines(node, "since_s=60")) == 3


async def test_log_gives_nothing_older_than_was_asked(node: Node) -> None:
    old = logging.makeLogRecord({"name": "node.tests", "msg": "old", "levelname": "WARNING", "created": 1.0})
    node.log_lines.handle(old)
    log.warning("new")
    assert said(await lines(node, "since_s=3600")) == ["new"]


async def test_log_of_a_job_has_the_lines_that_name_it_or_its_contract(node: Node) -> None:
    node.view.records = [purchase(is_open=True)]
    log.info("other", extra={"contract": b"x" * 32})
    log.info("short", extra={"contract": bytes(CONTRACT)})
    log.info("whole", extra={"job": JOB.hex()})
    found = await lines(node, f"job={JOB.hex()[:8]}")
    assert [it.partition(" ")[0] for it in said(found)] == ["short", "whole"]
    reply = await node.call("GET", "/api/v1/logs?job=abcdef")
    assert (reply.status, reply.error["code"]) == (404, "job_not_found")
    assert (await node.call("GET", f"{EVENTS_PATH}?job=abcdef")).status == 404


@pytest.mark.parametrize(
    "query",
    [
        *("after=x", "after=-1", "limit=0", "limit=1001", "limit=", f"after={'9' * 20}"),
        *("since_s=0", "since_s=x", "level=loud", "job=xyz", "job=abc", f"grep={'x' * 257}"),
    ],
)
async def test_log_is_refused_when_the_query_is_none(node: Node, query: str) -> None:
    assert (await node.call("GET", f"/api/v1/logs?{query}")).status == 400
    assert (await node.call("GET", f"{EVENTS_PATH}?{query}")).status == 400


async def follow(node: Node, query: str = "") -> trio.SocketStream:
    head = f"GET {EVENTS_PATH}?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    return await node.open(head.encode())


async def read_until(client: trio.SocketStream, end: bytes) -> bytes:
    heard = b""
    with trio.fail_after(5):
        while end not in heard:
            heard += await client.receive_some()
    return heard


async def test_follower_gets_what_there_is_then_what_comes_from_any_thread(node: Node) -> None:
    log.warning("before")
    client = await follow(node, "level=warning")
    begun = await read_until(client, b"before")
    assert KEEP_ALIVE in begun
    await trio.to_thread.run_sync(log.info, "too small")
    await trio.to_thread.run_sync(log.error, "from a thread")
    text = (await read_until(client, b"from a thread")).decode()
    assert "too small" not in text and "before" not in text
    document = (await node.call("GET", DOCUMENT)).json
    schema = find(document, "GET", EVENTS_PATH)["responses"]["200"]["content"]["text/event-stream"]["schema"]
    (event,) = [json.loads(it.removeprefix("data: ")) for it in text.splitlines() if it.startswith("data: ")]
    validate(document, schema, event)
    await client.aclose()


async def test_follower_of_a_job_reads_on_when_the_journal_has_dropped_it(node: Node) -> None:
    node.view.records = [purchase(is_open=True)]
    client = await follow(node, f"job={JOB.hex()[:8]}")
    await read_until(client, KEEP_ALIVE)
    node.view.records = []
    log.info("late", extra={"job": JOB.hex()})
    assert b"late" in await read_until(client, b"late")
    await client.aclose()


async def test_follower_leaves_nothing_behind_when_it_goes(node: Node) -> None:
    client = await follow(node)
    await read_until(client, KEEP_ALIVE)
    assert listeners(node.log_lines) == 1
    await client.aclose()
    with trio.fail_after(5):
        while listeners(node.log_lines):
            await trio.testing.wait_all_tasks_blocked()


def listeners(ring: LogRing) -> int:
    return len(ring._heard)


async def test_follower_is_refused_when_too_many_follow(node: Node) -> None:
    clients = [await follow(node) for _ in range(READERS_MAX)]
    for client in clients:
        await read_until(client, KEEP_ALIVE)
    reply = await node.call("GET", EVENTS_PATH)
    assert (reply.status, reply.error["code"]) == (429, "too_many_readers") and reply.headers["retry-after"]
    for client in clients:
        await client.aclose()
