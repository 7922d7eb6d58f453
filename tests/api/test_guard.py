"""Who is let in, how big a body may be, and that every answer has the one shape."""

import pytest
import trio
import trio.testing

from node.api.guard import BODY_BYTES_MAX
from tests.api.fakes import TOKEN, chat_body, serve_node
from tests.api.test_openapi import DOCUMENT


@pytest.mark.parametrize("host", ["127.0.0.1:11500", "localhost", "LOCALHOST:8080", "[::1]:11500", "[::1]"])
async def test_request_is_let_in_when_its_host_is_a_loopback_name(nursery: trio.Nursery, host: str) -> None:
    node = await serve_node(nursery)
    assert (await node.call("GET", "/api/v1/status", host=host)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:11500", "10.0.0.1:11500", "::1", ""])
@pytest.mark.parametrize("path", ["/healthz", "/api/v1/status"])
async def test_request_is_refused_when_its_host_is_another(nursery: trio.Nursery, host: str, path: str) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", path, host=host)
    assert reply.status == 403 and reply.error["code"] == "host_refused"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://{host}", "http://localhost:1", ""])
async def test_request_is_refused_when_another_web_page_sends_it(nursery: trio.Nursery, origin: str) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", "/healthz", origin=origin.format(host=f"127.0.0.1:{node.port}"))
    assert reply.status == 403 and reply.error["code"] == "origin_refused"


async def test_request_of_our_own_page_is_let_in_with_its_token_only(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("GET", "/api/v1/status", origin=node.url)).status == 200
    assert (await node.call("GET", "/api/v1/status", origin=node.url, authorization="")).status == 401


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"]
)
@pytest.mark.parametrize("path", ["/api/v1/status", "/v1/models", "/nowhere"])
async def test_request_is_refused_when_its_token_is_missing_or_wrong(
    nursery: trio.Nursery, header: str, path: str
) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", path, authorization=header)
    assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probe_needs_no_token(nursery: trio.Nursery, path: str) -> None:
    node = await serve_node(nursery)
    assert (await node.call("GET", path, authorization="")).status == 200


async def test_only_what_the_document_calls_open_is_answered_without_a_token(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    document = (await node.call("GET", DOCUMENT)).json
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            reply = await node.call(method.upper(), path, body={}, authorization="")
            assert (reply.status != 401) is (operation.get("security") == []), (method, path)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/api/v1/status/", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/api/v1/status", 405, "method_not_allowed"),
    ],
)
async def test_wrong_path_or_method_gets_an_error_of_the_one_shape(
    nursery: trio.Nursery, method: str, path: str, status: int, code: str
) -> None:
    node = await serve_node(nursery)
    reply = await node.call(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_body_is_refused_unread_when_it_announces_too_much(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    client = await node.open(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (TOKEN.encode(), BODY_BYTES_MAX + 1)
    )
    assert (await client.receive_some(12)) == b"HTTP/1.1 413"
    await client.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("token", [TOKEN, "wrong"])
async def test_client_reads_the_refusal_of_a_large_body_that_it_sends_whole(
    nursery: trio.Nursery, token: str
) -> None:
    node = await serve_node(nursery)
    data = b"x" * (BODY_BYTES_MAX + 1)
    reply = await node.call("POST", "/v1/chat/completions", body=data, authorization=f"Bearer {token}")
    assert (reply.status, reply.error["code"]) in {(413, "body_too_large"), (401, "invalid_api_key")}
    with trio.fail_after(1):
        node.scope.cancel()
        await node.ended.wait()


@pytest.mark.slow
async def test_body_is_refused_when_it_grows_too_large_in_chunks(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    client = await node.open(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n" % TOKEN.encode()
    )
    piece = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    for _ in range(BODY_BYTES_MAX // 0x100000 + 1):
        await client.send_all(piece)
    await client.send_all(b"0\r\n\r\n")
    assert (await client.receive_some(12)) == b"HTTP/1.1 413"
    await client.aclose()


async def test_connection_is_let_go_when_a_refused_client_never_ends_its_body(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    node = await serve_node(nursery)
    client = await node.open(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 100
    )
    with trio.fail_after(10):
        answer = b"".join([data async for data in client])
    assert answer.startswith(b"HTTP/1.1 401")


async def test_answers_have_ids_of_their_own(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    replies = [await node.call("POST", "/v1/chat/completions", body=chat_body()) for _ in range(2)]
    assert replies[0].headers["x-request-id"] != replies[1].headers["x-request-id"]
