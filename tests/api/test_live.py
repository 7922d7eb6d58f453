"""Snapshots once a second for everybody who watches."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from node.api.intake import READERS_MAX
from node.api.live import JOBS_MAX, MODELS_MAX
from node.api.views import StatusView
from node.errors import LedgerDiskError
from node.market.journal import JobRecord
from protocol.units import JobId, UnixMs
from tests.api.fakes import TOKEN, Node, serve_node

WATCH = f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()


async def snapshots(stream: trio.SocketStream) -> AsyncIterator[dict[str, Any]]:
    """Give each snapshot as it comes, to the last chunk: the connection may stay open after it."""
    rest = b""
    async for data in stream:
        rest += data
        if rest.endswith(b"\r\n0\r\n\r\n"):
            return
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            at = block.find(b"data: ")
            if at >= 0:
                yield json.loads(block[at + 6 :])


async def first(node: Node) -> dict[str, Any]:
    async with await node.open(WATCH) as stream:
        return await anext(aiter(snapshots(stream)))


@pytest.mark.slow
async def test_watcher_gets_a_snapshot_at_once_and_one_each_second(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    async with await node.open(WATCH) as stream:
        coming = aiter(snapshots(stream))
        one = await anext(coming)
        begun = trio.current_time()
        two = await anext(coming)
    assert 0.5 < trio.current_time() - begun < 5
    assert one["status"]["name"] == "gpu-1" and one["jobs"][0]["model"] == "tiny" and one["findings"] == []
    assert two["at_ms"] - one["at_ms"] >= 900


@pytest.mark.slow
async def test_stream_ends_in_order_when_the_ledger_fails_and_who_asks_again_is_told(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = await serve_node(nursery)

    async def fail() -> StatusView:
        raise LedgerDiskError("no space is left")

    async with await node.open(WATCH) as stream:
        coming = aiter(snapshots(stream))
        await anext(coming)
        monkeypatch.setattr(node.view, "status", fail)
        with pytest.raises(StopAsyncIteration):
            await anext(coming)
    assert (await node.call("GET", "/api/v1/events")).status == 503
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_snapshot_shows_open_jobs_first_and_stays_within_its_bound(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    done = [
        JobRecord(
            role="requester",
            job_id=JobId(i.to_bytes(16, "big")),
            model="m" * 64,
            state="closed",
            started_ms=UnixMs(1_000 + i),
            ended_ms=UnixMs(2_000),
        )
        for i in range(300)
    ]
    node.view.records = [*done, *node.view.records]
    found = await first(node)
    assert len(found["jobs"]) == JOBS_MAX and len(found["models"]) <= MODELS_MAX
    assert found["jobs"][0]["ended_ms"] is None and found["jobs"][1]["started_ms"] == 1_299
    assert len(json.dumps(found)) < 32 * 1024


async def test_watcher_is_refused_when_too_many_watch_and_let_in_when_one_has_left(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    streams = [await node.open(WATCH) for _ in range(READERS_MAX)]
    for stream in streams:
        await anext(aiter(snapshots(stream)))
    reply = await node.call("GET", "/api/v1/events")
    assert (reply.status, reply.error["code"]) == (429, "too_many_readers") and reply.headers["retry-after"]
    for stream in streams:
        await stream.aclose()
    with trio.fail_after(5):
        while True:
            try:
                assert await first(node)
                break
            except StopAsyncIteration:
                await trio.lowlevel.checkpoint()  # its place is free once the server has seen the end
