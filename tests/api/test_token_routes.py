"""The token, replaced while the node runs."""

import pytest
import trio

from tests.api.fakes import NEW_TOKEN, TOKEN, serve_node


async def test_old_token_and_those_of_tabs_open_nothing_after_a_rotation(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    code = (await node.call("POST", "/api/v1/dashboard", body={})).json["code"]
    late = (await node.call("POST", "/api/v1/dashboard", body={})).json["code"]
    tab = (await node.call("POST", "/ui/session", body={"code": code}, authorization="")).json["token"]
    reply = await node.call("POST", "/api/v1/token/rotate")
    assert reply.json == {"schema": 1, "file": "/home/souk/token", "rotated": True}
    for old in (TOKEN, tab):
        assert (await node.call("GET", "/api/v1/status", authorization=f"Bearer {old}")).status == 401
    assert (await node.call("POST", "/ui/session", body={"code": late}, authorization="")).status == 401
    assert (await node.call("GET", "/api/v1/status", authorization=f"Bearer {NEW_TOKEN}")).status == 200


async def test_token_is_rotated_by_nobody_without_it(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/token/rotate", authorization="")).status == 401
    assert (await node.call("GET", "/api/v1/status")).status == 200


@pytest.mark.parametrize("path", ["/api/v1/events", "/api/v1/jobs/events", "/api/v1/logs/events"])
async def test_endless_answers_end_when_the_token_is_replaced(nursery: trio.Nursery, path: str) -> None:
    node = await serve_node(nursery)
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    old = await node.open(f"{head}{TOKEN}\r\n\r\n".encode())
    with trio.fail_after(5):
        assert b" 200 " in await old.receive_some()
        assert (await node.call("POST", "/api/v1/token/rotate")).status == 200
        while await old.receive_some():
            pass
    new = await node.open(f"{head}{NEW_TOKEN}\r\n\r\n".encode())
    with trio.fail_after(5):
        assert b" 200 " in await new.receive_some()
    await new.aclose()
