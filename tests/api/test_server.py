"""The listener under clients that stall, leave, lie and babble."""

import logging
import socket
import struct

import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from node.api.server import HEAD_BYTES_MAX, IDLE_S_MAX, serve_app
from node.api.sse import KEEP_ALIVE_S
from node.errors import NodeError
from tests.api.fakes import ANSWERED, CONTRACTED, EndlessMarket, Node, ScriptedMarket, serve_node

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x00" * 5000,
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: nine\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /" + b"a" * (2 * HEAD_BYTES_MAX),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: %%%\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n\xff\xff\xff",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


async def stalled_stream(nursery: trio.Nursery) -> tuple[Node, trio.SocketStream]:
    """Return a node whose answer fills every buffer, and the client that does not read it."""
    node = await serve_node(nursery, EndlessMarket())
    client = await node.open_chat(stream=True)
    await node.market.taken.wait()
    await trio.testing.wait_all_tasks_blocked(0.05)
    return node, client


async def test_server_ends_at_once_when_a_client_does_not_read(nursery: trio.Nursery) -> None:
    node, client = await stalled_stream(nursery)
    with trio.fail_after(1):
        node.scope.cancel()
        await node.ended.wait()
    assert node.market.cancelled.is_set()
    await client.aclose()


async def test_server_cuts_a_client_off_when_it_does_not_read_for_long(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = await serve_node(nursery, EndlessMarket())
    client = await node.open_chat(stream=True)
    with trio.fail_after(60):
        await node.market.cancelled.wait()
    assert trio.current_time() >= 20
    await client.aclose()


async def test_job_is_cancelled_when_a_client_that_did_not_read_leaves(nursery: trio.Nursery) -> None:
    node, client = await stalled_stream(nursery)
    with trio.fail_after(1):
        await client.aclose()
        await node.market.cancelled.wait()


async def test_waiting_stream_is_kept_alive_by_comments(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = await serve_node(nursery, ScriptedMarket([CONTRACTED, trio.Event()]))
    client = await node.open_chat(stream=True)
    heard = b""
    with trio.fail_after(4 * IDLE_S_MAX):
        # Longer than the idle time of a connection: this one is at work.
        while heard.count(b": waiting\n\n") < 2 * IDLE_S_MAX / KEEP_ALIVE_S:
            more = await client.receive_some()
            assert more
            heard += more
    await client.aclose()


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_server_answers_others_when_a_client_sends_garbage(nursery: trio.Nursery, garbage: bytes) -> None:
    node = await serve_node(nursery)
    client = await node.open(garbage)
    with trio.fail_after(5):
        await client.send_eof()
        async for _ in client:
            pass
    assert (await node.call("GET", "/healthz")).status == 200
    assert not node.ended.is_set()


async def test_server_answers_others_when_clients_vanish_in_mid_request(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for cut in range(0, len(HEALTH), 7):
        client = await node.open(HEALTH[:cut])
        await client.aclose()
    assert (await node.call("GET", "/healthz")).status == 200


async def read_health(client: trio.SocketStream) -> bytes:
    answer = b""
    with trio.fail_after(1):
        while not answer.endswith(b'{"status":"ok"}'):
            answer += await client.receive_some()
    return answer


async def test_connection_serves_one_request_after_another(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket(ANSWERED))
    client = await node.open(b"")
    for _ in range(3):
        await client.send_all(HEALTH)
        await read_health(client)
    await client.aclose()


async def test_idle_connection_is_let_go_when_its_client_has_finished(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    client = await node.open(HEALTH)
    await read_health(client)
    # Idle only now: what ends while it is being answered is closed in another way.
    await trio.testing.wait_all_tasks_blocked(0.01)
    await client.send_eof()
    with trio.fail_after(1):
        assert await client.receive_some() == b""


async def test_silent_connection_is_let_go_after_its_idle_time(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = await serve_node(nursery)
    client = await node.open(b"")
    assert await client.receive_some() == b""
    assert trio.current_time() >= IDLE_S_MAX


LAST = HEALTH[:-2] + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    "data", [LAST + HEALTH * 5, HEALTH * 5, HEALTH * 5 + b"x", b"GET / HTTP/1.1\r\n\r\n" * 5, HEALTH[:-2], b""]
)
@pytest.mark.parametrize("rudely", [True, False])
async def test_no_task_is_left_when_a_client_has_vanished(
    nursery: trio.Nursery, data: bytes, rudely: bool
) -> None:
    node = await serve_node(nursery)
    await trio.testing.wait_all_tasks_blocked(0.01)
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(5):
        await leave(await node.open(data), rudely=rudely)
    with trio.fail_after(1):
        while trio.lowlevel.current_statistics().tasks_living > tasks:
            await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("rudely", [True, False])
async def test_no_task_is_left_when_clients_of_streams_have_vanished(
    nursery: trio.Nursery, rudely: bool, caplog: pytest.LogCaptureFixture
) -> None:
    node = await serve_node(nursery, EndlessMarket())
    await trio.testing.wait_all_tasks_blocked(0.01)
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(5):
        client = await node.open_chat(stream=True)
        await client.send_all(HEALTH * 3)
        await client.receive_some()
        await leave(client, rudely=rudely)
    with trio.fail_after(1):
        while trio.lowlevel.current_statistics().tasks_living > tasks:
            await trio.testing.wait_all_tasks_blocked(0.01)
    # A client may leave: that is no fault, and no line in the log above info.
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def leave(client: trio.SocketStream, *, rudely: bool) -> None:
    if rudely:  # a reset instead of an end
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.aclose()


async def test_connection_stays_at_http1_when_its_client_offers_http2(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    client = await node.open(HEALTH.removesuffix(b"\r\n") + offer)
    assert (await read_health(client)).startswith(b"HTTP/1.1 200")
    await client.aclose()


async def test_server_names_the_address_and_the_way_out_when_the_port_is_in_use(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError

    with pytest.raises(NodeError, match=rf"127\.0\.0\.1:{node.port}: the port is in use.*souk status"):
        await serve_app(app, f"127.0.0.1:{node.port}")


@pytest.mark.parametrize("bind", ["127.0.0.1:99999", "[::2]:0"])
async def test_server_refuses_to_start_when_the_address_is_not_its_own(bind: str) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError

    with pytest.raises(NodeError, match="cannot listen on"):
        await serve_app(app, bind)


@pytest.mark.parametrize(("bind", "url"), [("localhost:0", "http://127.0.0.1:"), ("[::1]:0", "http://[::1]:")])
async def test_server_tells_the_url_with_the_port_that_it_took(nursery: trio.Nursery, bind: str, url: str) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError

    told = await nursery.start(serve_app, app, bind)
    assert told.startswith(url) and int(told.removeprefix(url)) > 0
    nursery.cancel_scope.cancel()
