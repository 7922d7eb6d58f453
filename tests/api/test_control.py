"""The control routes: exact shapes, since scripts read them."""

import pytest
import trio

from tests.api.fakes import CONTRACT, JOB, PEER_TEXT, serve_node

DEVICE = {
    "kind": "cpu",
    "index": 0,
    "name": "a processor",
    "architecture": "avx2",
    "memory_total_bytes": 8,
    "memory_free_bytes": 4,
    "dtypes": ["fp32"],
    "driver": None,
    "matmul_gflops": 50,
    "read_mb_per_s": None,
}
UNTOLD = (
    "compute_capability", "utilization_ratio", "temperature_celsius", "power_watts", "energy_millijoules",
    "foreign_processes",
)  # fmt: skip
DEVICE |= dict.fromkeys(UNTOLD) | {"models": []}
OFFER = {"name": "tiny", "model_id": "ab" * 32, "context_tokens": 64, "price_in": 1, "price_out": 2}

SHAPES = [
    ("/healthz", {"status": "ok"}),
    ("/readyz", {"ready": True, "checks": {"p2p": "ok"}}),
    (
        "/api/v1/status",
        {
            "schema": 1,
            "name": "gpu-1",
            "peer_id": PEER_TEXT,
            "version": "0.1.0",
            "network": "main",
            "role": "worker",
            "ready": True,
            "problems": {},
            "uptime_s": 1.5,
            "addresses": ["/ip4/127.0.0.1/tcp/11501"],
            "peers_connected": 1,
            "models": ["tiny"],
            "devices": [DEVICE],
            "workers": [],
            "jobs": {"running": 0, "waiting": 0},
            "gate": None,
            "earned_microcredits": 0,
            "spent_microcredits": 0,
        },
    ),
    (
        "/api/v1/peers",
        {
            "schema": 1,
            "peers": [
                {
                    "peer_id": PEER_TEXT,
                    "name": "gpu-2",
                    "connected": True,
                    "advert_age_ms": 5,
                    "models": [OFFER | {"tokens_per_s": 3.5}],
                    "slots_free": 1,
                    "slots_total": 2,
                    "queue_ms": 0,
                    "devices": [DEVICE],
                    "ban": None,
                }
            ],
        },
    ),
    (
        "/api/v1/models",
        {
            "schema": 1,
            "models": [
                OFFER
                | {
                    "name": "org/tiny",
                    "local": True,
                    "peers": 2,
                    "tokens_per_s": 3.5,
                    "tasks": ["generate"],
                    "delivered_tokens_per_s": None,
                }
            ],
        },
    ),
    ("/api/v1/devices", {"schema": 1, "devices": [DEVICE]}),
    ("/api/v1/advert", {"schema": 1, "advert": None}),
    (
        "/api/v1/receipts",
        {
            "schema": 1,
            "receipts": [
                {
                    "contract_id": CONTRACT.hex(),
                    "job_id": JOB.hex(),
                    "role": "requester",
                    "peer_id": PEER_TEXT,
                    "model": "tiny",
                    "state": "closed",
                    "tokens_in": 3,
                    "tokens_out": 2,
                    "cost_microcredits": 7,
                    "at_ms": 1,
                    "energy_millijoules": None,
                }
            ],
        },
    ),
    (
        f"/api/v1/receipts/{CONTRACT.hex()[:8].upper()}",
        {
            "schema": 1,
            "bundle": {
                "network": "aa",
                "messages": [{"type": "quote", "from": "provider", "at_ms": 1, "envelope": "00ff"}],
            },
        },
    ),
]


@pytest.mark.parametrize(("path", "expected"), SHAPES, ids=[path for path, _ in SHAPES])
async def test_view_has_its_golden_shape(nursery: trio.Nursery, path: str, expected: object) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", path)
    assert (reply.status, reply.json) == (200, expected)


async def test_probe_is_red_with_its_reasons_when_a_check_fails(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.checks = {"p2p": "ok", "worker": "loading tiny"}
    reply = await node.call("GET", "/readyz")
    assert (reply.status, reply.json) == (503, {"ready": False, "checks": node.view.checks})


async def test_advert_is_shown_when_there_is_one(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.own_advert = {"name": "gpu-1", "models": [{"name": "tiny"}]}
    assert (await node.call("GET", "/api/v1/advert")).json["advert"] == node.view.own_advert


async def test_receipts_are_bounded_by_the_limit_asked_for(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for query in ("", "?limit=7"):
        assert (await node.call("GET", f"/api/v1/receipts{query}")).status == 200
    assert node.view.limits == [50, 7]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "99999999999", "%C2%B2"])
async def test_limit_is_refused_when_it_is_out_of_bounds(nursery: trio.Nursery, limit: str) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", f"/api/v1/receipts?limit={limit}")
    assert (reply.status, reply.error["param"]) == (400, "limit")
    assert node.view.limits == []


@pytest.mark.parametrize(
    ("prefix", "status", "code"),
    [("abcd", 404, "contract_not_found"), ("abc", 400, "invalid_value"), ("zzzz", 400, "invalid_value")],
)
async def test_bundle_is_refused_when_no_contract_has_the_prefix(
    nursery: trio.Nursery, prefix: str, status: int, code: str
) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", f"/api/v1/receipts/{prefix}")
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_connect_tells_who_answered(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/connect", body={"address": "/good"})
    assert (reply.status, reply.json) == (200, {"peer_id": PEER_TEXT})


async def test_connect_fails_with_the_reason_when_nobody_answers(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/connect", body={"address": "/bad"})
    assert (reply.status, reply.error["code"]) == (502, "unreachable")
    assert reply.error["message"] == "nobody answers at /bad"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"address":1}', b'{"address":"/good","x":1}', b"\xff"]
)
async def test_connect_refuses_a_body_that_is_not_its_own(nursery: trio.Nursery, body: bytes) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/connect", body=body)).error["type"] == "invalid_request_error"


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_shutdown_is_asked_for_after_its_answer(nursery: trio.Nursery, connection: str) -> None:
    node = await serve_node(nursery)
    assert (await node.call("POST", "/api/v1/shutdown", connection=connection)).status == 202
    with trio.fail_after(1):
        await node.dialler.stopped.wait()
