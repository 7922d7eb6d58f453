import trio

from node.api.bench_routes import bench_answer
from tests.api.fake_operator import CAPACITY
from tests.api.fakes import serve_node


def test_measurement_is_shown_in_the_units_of_the_advert() -> None:
    found, model = bench_answer(CAPACITY), CAPACITY.model
    assert (found.device, found.model, found.dtype) == (model.device, model.name, model.dtype)
    assert (found.runs, found.tokens_per_s_min, found.tokens_per_s_max) == (3, 3.0, 5.0)
    assert (found.measured.tokens_per_s, found.advertised.tokens_per_s) == (4.0, 3.5)
    assert found.advertised.matmul_gflops is None


async def test_bench_that_cannot_be_made_tells_why(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/bench", body={"device": "cuda:0"})
    assert (reply.status, reply.error["code"]) == (409, "device_busy")
    for device, status, code in (("full", 409, "model_refused"), ("crowded", 409, "model_busy")):
        reply = await node.call("POST", "/api/v1/bench", body={"device": device})
        assert (reply.status, reply.error["code"]) == (status, code)
    reply = await node.call("POST", "/api/v1/bench", body={"seconds": 61})
    assert (reply.status, reply.error["param"]) == (400, "seconds")
