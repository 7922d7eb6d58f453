import trio

from tests.api.fakes import serve_node


async def test_load_tells_how_the_model_is_served(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/models/tiny/load")
    assert reply.json == {
        "schema": 1,
        "name": "tiny",
        "model_id": b"m".hex() * 32,
        "device": "cpu",
        "dtype": "fp32",
        "context_tokens": 64,
        "slots": 2,
        "memory_bytes": 1 << 20,
        "tokens_per_s": 3.5,
    }


async def test_unload_tells_what_went_wrong_in_the_shape_of_all_errors(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/models/tiny/unload")).json == {"schema": 1, "name": "tiny"}
    reply = await node.call("POST", "/api/v1/models/huge/unload")
    assert reply.status == 404 and reply.error["code"] == "model_not_found"
