import trio

from tests.api.fakes import serve_node


async def test_settings_are_shown_with_where_they_come_from(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", "/api/v1/config")
    assert reply.json == {
        "schema": 1,
        "path": "config.toml",
        "settings": [{"name": "node.name", "value": "n", "origin": "default", "live": False}],
    }


async def test_reload_says_what_changed(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/reload")
    assert reply.json == {
        "schema": 1,
        "changed": [{"name": "market.price_in", "before": 1, "after": 2, "origin": "config.toml:3"}],
        "needs_restart": [],
    }


async def test_reload_tells_every_fault_when_the_configuration_is_bad(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.operator.problems = ["config.toml:1: a", "config.toml:2: b"]
    reply = await node.call("POST", "/api/v1/reload")
    assert reply.status == 409 and reply.error["code"] == "config_invalid"
    assert str(reply.error["message"]).splitlines()[1:] == node.operator.problems


async def test_drain_and_resume_answer_with_the_gate(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    drained = await node.call("POST", "/api/v1/drain", body={"grace_s": 5})
    assert drained.json["gate"] == (await node.call("GET", "/api/v1/gate")).json["gate"]
    assert (drained.json["gate"]["open"], drained.json["gate"]["jobs"]) == (False, 2)
    assert (await node.call("POST", "/api/v1/drain", body={})).status == 200
    assert node.operator.graces == [5, None]
    assert (await node.call("POST", "/api/v1/resume", body={})).json["gate"]["open"] is True


async def test_drain_refuses_a_grace_that_is_none(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for body in ({"grace_s": -1}, {"grace": 1}, {"grace_s": "5m"}):
        assert (await node.call("POST", "/api/v1/drain", body=body)).status == 400
    assert not node.operator.graces
