"""The routes of jobs: exact shapes, since scripts read them; cancelling; quotes."""

import pytest
import trio

from node.api.why_node import NodeFacts
from node.market.journal import JobRecord, Step
from node.market.order import OrderCancelledError
from protocol.units import JobId, UnixMs
from tests.api.fakes import (
    ASKING,
    CONTRACT,
    CONTRACTED,
    FINISHED,
    JOB,
    PEER,
    PEER_TEXT,
    Node,
    ScriptedMarket,
    chat_body,
    serve_node,
)

RUNNING = {
    "job_id": JOB.hex(), "contract_id": None, "role": "provider", "peer_id": PEER_TEXT, "model": "tiny",
    "state": "running", "tokens_in": 0, "tokens_out": 3, "cost_microcredits": 0, "started_ms": 4,
    "energy_millijoules": None, "first_token_ms": None, "ended_ms": None, "code": None, "message": None,
}  # fmt: skip


def purchase(number: int = 0, *, is_open: bool = False) -> JobRecord:
    job_id = JobId(bytes([number]) * 16) if number else JOB
    record = JobRecord(
        role="requester", job_id=job_id, model="tiny", started_ms=UnixMs(1_000 + number), operation="chat"
    )
    for at_ms, event in ((1_001, ASKING), (1_020, CONTRACTED)):
        record.hear(event, UnixMs(at_ms))
    if not is_open:
        record.hear(FINISHED, UnixMs(1_500))
        record.end("closed", UnixMs(1_500))
    return record


async def ids(node: Node, query: str) -> list[str]:
    return [job["job_id"] for job in (await node.call("GET", f"/api/v1/jobs{query}")).json["jobs"]]


async def test_jobs_have_their_golden_shape(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", "/api/v1/jobs")
    assert (reply.status, reply.json) == (200, {"schema": 1, "jobs": [RUNNING]})


async def test_timeline_has_its_golden_shape(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.records = [purchase()]
    shown = (await node.call("GET", f"/api/v1/jobs/{JOB.hex()[:6].upper()}")).json
    peer, contract = PEER_TEXT, CONTRACT.hex()
    assert shown == {
        "schema": 1,
        "job": RUNNING | {
            "role": "requester", "contract_id": contract, "state": "closed", "tokens_in": 3, "tokens_out": 2,
            "cost_microcredits": 7, "started_ms": 1_000, "ended_ms": 1_500,
        },
        "timeline": [
            {"step": "asking", "at_ms": 1_001, "peers": 1},
            {
                "step": "contracted", "at_ms": 1_020, "peer_id": peer, "contract_id": contract,
                "price_max_microcredits": 9, "tokens_out": 0,
            },
            {
                "step": "paid", "at_ms": 1_500, "peer_id": peer, "contract_id": contract,
                "cost_microcredits": 7, "tokens_out": 2,
            },
        ],
        "steps_left_out": 0,
        "is_restored": False,
    }  # fmt: skip


async def test_jobs_are_narrowed_by_state_role_and_limit(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.records = [purchase(3, is_open=True), purchase(2), purchase(1), node.view.records[0]]
    assert len(await ids(node, "")) == 4
    assert await ids(node, "?state=open") == ["03" * 16, JOB.hex()]
    assert await ids(node, "?state=over&limit=1") == ["02" * 16]
    assert len(await ids(node, "?role=requester,local")) == 3
    assert await ids(node, "?state=running") == await ids(node, "?role=provider") == [JOB.hex()]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "role=worker"])
async def test_list_refuses_what_it_does_not_know(nursery: trio.Nursery, query: str) -> None:
    node = await serve_node(nursery)
    reply = await node.call("GET", f"/api/v1/jobs?{query}")
    assert (reply.status, reply.error["param"]) == (400, query.partition("=")[0])


@pytest.mark.parametrize(
    ("job", "status", "code"),
    [("abcd", 404, "job_not_found"), ("abc", 400, "invalid_value"), ("zzzz", 400, "invalid_value")],
)
async def test_job_is_refused_when_nothing_has_its_id(
    nursery: trio.Nursery, job: str, status: int, code: str
) -> None:
    node = await serve_node(nursery)
    for method, path in (("GET", ""), ("GET", "/why"), ("POST", "/cancel")):
        reply = await node.call(method, f"/api/v1/jobs/{job}{path}")
        assert (reply.status, reply.error["code"]) == (status, code)
    assert node.market.cancels == []


async def test_job_is_refused_when_its_prefix_is_that_of_two(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.records = [purchase(), purchase()]
    reply = await node.call("GET", f"/api/v1/jobs/{JOB.hex()}")
    assert reply.status == 400 and "more digits" in str(reply.error["message"])


async def test_cancel_ends_an_order_and_shows_it(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    node.view.records = [purchase(is_open=True)]
    reply = await node.call("POST", f"/api/v1/jobs/{JOB.hex()}/cancel")
    assert (reply.status, reply.json["job"]["job_id"]) == (200, JOB.hex()) and node.market.cancels == [JOB]


async def test_cancel_is_refused_for_a_peers_job_and_for_one_that_is_over(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", f"/api/v1/jobs/{JOB.hex()}/cancel")
    assert (reply.status, reply.error["code"]) == (409, "not_ours") and node.market.cancels == []
    node.view.records = [purchase(5)]
    reply = await node.call("POST", f"/api/v1/jobs/{'05' * 16}/cancel")
    assert (reply.status, reply.error["code"]) == (409, "job_over")


async def test_reader_of_a_cancelled_order_is_told_so_and_not_to_try_again(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket((ASKING, OrderCancelledError("it was cancelled"))))
    reply = await node.call("POST", "/v1/chat/completions", body=chat_body())
    assert (reply.status, reply.error["code"]) == (410, "cancelled") and "retry-after" not in reply.headers


async def test_why_names_the_reasons_of_a_job(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    record = purchase(is_open=True)
    record.note(Step(name="passed_over", at_ms=UnixMs(1_100), peer_id=PEER, code="busy", message="8 of 8"))
    record.end("failed", UnixMs(1_200), code="no_capacity", message="none of 1 peers took the job")
    node.view.records = [record]
    shown = (await node.call("GET", f"/api/v1/jobs/{JOB.hex()}/why")).json
    assert (shown["job_id"], shown["state"]) == (JOB.hex(), "failed")
    assert [it["code"] for it in shown["findings"]] == ["no_capacity", "busy"]


async def test_why_says_that_all_is_well_or_what_is_not(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    shown = (await node.call("GET", "/api/v1/why")).json
    assert shown == {"schema": 1, "can_serve": True, "can_buy": True, "findings": []}
    facts = node.view.node_facts
    node.view.node_facts = NodeFacts(**{name: getattr(facts, name) for name in facts.__slots__} | {"models": 0})
    shown = (await node.call("GET", "/api/v1/why")).json
    assert (shown["can_serve"], shown["can_buy"]) == (False, True)
    assert shown["findings"][0]["code"] == "no_model" and "souk models add" in shown["findings"][0]["advice"]


async def test_quotes_show_terms_and_refusals(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    body = {"model": "tiny", "prompt_tokens": 100, "max_tokens": 50}
    reply = await node.call("POST", "/api/v1/quote", body=body)
    numbers = ("price_max_microcredits", "price_in", "price_out", "first_token_ms", "memory_bytes", "hold_ms")
    empty = dict.fromkeys((*numbers, "code"))
    offered = {
        "price_max_microcredits": 200,
        "price_in": 1,
        "price_out": 2,
        "first_token_ms": 30,
        "memory_bytes": 5,
        "hold_ms": 15_000,
    }
    refused = {"code": "silent", "message": "no quote in time"}
    peer = {"peer_id": PEER_TEXT, "message": None} | empty
    assert reply.json == {"schema": 1, "model": "tiny", "quotes": [peer | offered, peer | refused]}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "huge"}, 404, "model_not_found"),
        ({"model": ""}, 400, "invalid_value"),
        ({"model": "tiny", "max_tokens": 0}, 400, "invalid_value"),
        ({"model": "tiny", "tokens": 1}, 400, "invalid_value"),
        ({}, 400, "invalid_value"),
    ],
)
async def test_quote_is_refused_with_its_reason(
    nursery: trio.Nursery, body: dict[str, object], status: int, code: str
) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", "/api/v1/quote", body=body)
    assert (reply.status, reply.error["code"]) == (status, code)
