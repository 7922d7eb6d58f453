import math

import pytest
import trio

from node.api import peer_routes
from protocol.identity import peer_id_to_text
from tests.api.fake_peers import KNOWN
from tests.api.fakes import Node, serve_node
from tests.fakes import signer_of

KNOWN_TEXT = peer_id_to_text(KNOWN)
ROOT = f"/api/v1/peers/{KNOWN_TEXT}"
NOBODY = f"/api/v1/peers/{peer_id_to_text(signer_of('nobody').peer_id)}"


async def refusal(node: Node, method: str, path: str, body: object = None) -> tuple[int, object, object]:
    reply = await node.call(method, path, body=body)
    return reply.status, reply.error["code"], reply.error["param"]


async def test_peer_is_shown_whole(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    shown = (await node.call("GET", ROOT)).json
    assert shown["peer"]["peer_id"] == KNOWN_TEXT and shown["peer"]["ban"] is None
    assert shown["connections"] == [{"address": "/ip4/192.0.2.1/tcp/50000", "inbound": True, "rtt_ms": None}]
    assert shown["versions"] == [1] and shown["account"]["earned_microcredits"] == 5


async def test_peer_is_refused_when_nobody_knows_it_or_it_is_no_id(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for method, verb in (("GET", ""), ("POST", "/ping"), ("POST", "/disconnect")):
        assert await refusal(node, method, NOBODY + verb) == (404, "peer_not_found", "peer")
    for method, verb in (
        ("GET", ""),
        *(("POST", verb) for verb in ("/ping", "/disconnect", "/ban", "/unban")),
    ):
        assert await refusal(node, method, f"/api/v1/peers/gpu-2{verb}", {}) == (400, "invalid_value", "peer")


async def test_ping_tells_the_round_trip_in_milliseconds(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", f"{ROOT}/ping")).json == {
        "schema": 1,
        "peer_id": KNOWN_TEXT,
        "rtt_ms": 12.5,
    }


async def test_ping_says_so_when_nothing_comes_back(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await serve_node(nursery)
    monkeypatch.setattr(peer_routes, "PING_S", 0.01)
    node.peers.rtt_s = math.inf
    assert await refusal(node, "POST", f"{ROOT}/ping") == (504, "no_answer", "peer")
    node.peers.rtt_s = None
    assert await refusal(node, "POST", f"{ROOT}/ping") == (502, "unreachable", None)


async def test_disconnect_tells_whether_there_was_a_connection(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for expected in (True, False):
        assert (await node.call("POST", f"{ROOT}/disconnect")).json["was_connected"] is expected


async def test_ban_holds_until_it_is_lifted(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert await refusal(node, "POST", f"{ROOT}/unban") == (404, "not_banned", "peer")
    banned = await node.call("POST", f"{ROOT}/ban", body={"reason": "sends garbage"})
    assert banned.json["ban"] == {"since_ms": 7, "reason": "sends garbage"}
    assert (await node.call("GET", ROOT)).json["peer"]["ban"] == banned.json["ban"]
    assert await refusal(node, "POST", f"{ROOT}/ping") == (409, "peer_banned", "peer")
    assert (await node.call("POST", f"{ROOT}/unban")).json["ban"] is None
    assert not node.peers.bans


async def test_peer_that_nobody_knows_can_be_banned(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", f"{NOBODY}/ban", body={})).json["ban"]["reason"] == ""
    assert (await node.call("GET", NOBODY)).status == 200


async def test_ban_is_refused_when_its_body_is_wrong_or_it_cannot_be_kept(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert await refusal(node, "POST", f"{ROOT}/ban", {"reason": "x" * 201}) == (400, "invalid_value", "reason")
    assert (await refusal(node, "POST", f"{ROOT}/ban", {"days": 3}))[0] == 400
    assert not node.peers.bans
    node.peers.full = True
    for verb in ("ban", "unban"):
        assert await refusal(node, "POST", f"{ROOT}/{verb}", {}) == (409, "ban_not_kept", "peer")
