"""The token, replaced while the node runs."""

import trio

from tests.api.fakes import NEW_TOKEN, TOKEN, serve_node


async def test_old_token_and_those_of_tabs_open_nothing_after_a_rotation(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    code = (await node.call("POST", "/api/v1/dashboard", body={})).json["code"]
    late = (await node.call("POST", "/api/v1/dashboard", body={})).json["code"]
    tab = (await node.call("POST", "/ui/session", body={"code": code}, authorization="")).json["token"]
    reply = await node.call("POST", "/api/v1/token/rotate")
    assert reply.json == {"schema": 1, "rotated": True}
    for old in (TOKEN, tab):
        assert (await node.call("GET", "/api/v1/status", authorization=f"Bearer {old}")).status == 401
    assert (await node.call("POST", "/ui/session", body={"code": late}, authorization="")).status == 401
    assert (await node.call("GET", "/api/v1/status", authorization=f"Bearer {NEW_TOKEN}")).status == 200


async def test_token_is_rotated_by_nobody_without_it(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/token/rotate", authorization="")).status == 401
    assert (await node.call("GET", "/api/v1/status")).status == 200
