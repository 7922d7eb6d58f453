"""Detached jobs over HTTP: ordered, waited for, fetched, ordered again; and every way in which that is refused."""

from dataclasses import replace
from typing import Any

import pytest
import trio

from node.api.detached_routes import KEY_HEADER
from node.config import ApiSection
from node.market.order import DeadlineError
from protocol.units import JobId
from tests.api.fakes import (
    ANSWERED,
    ASKING,
    CONTRACT,
    JOB,
    PEER_TEXT,
    RECEIPT,
    ScriptedMarket,
    serve_node,
)
from tests.api.test_detached import detached_id
from tests.api.test_job_routes import purchase

SPEC: dict[str, Any] = {"task": "generate", "model": "tiny", "prompt": "Once", "max_tokens": 5}
FIRST, SECOND = detached_id(1).hex(), detached_id(2).hex()
JOBS = "/api/v1/jobs"
SLOW = (ASKING, DeadlineError("too late"))


async def test_job_runs_without_its_client_and_its_result_is_fetched(nursery: trio.Nursery) -> None:
    gate = trio.Event()
    node = await serve_node(nursery, market := ScriptedMarket([ASKING, gate, *ANSWERED[1:]]))
    reply = await node.call("POST", JOBS, body=SPEC)
    assert (reply.status, reply.json) == (202, {"schema": 1, "job_id": FIRST, "is_new": True})
    await market.taken.wait()
    (order,) = market.orders
    assert (order.job_id, order.tokens_out_max, order.sampling.seed) == (detached_id(1), 5, 4242)

    reply = await node.call("GET", f"{JOBS}/{FIRST[:6].upper()}/result")
    waiting = {"schema": 1, "job_id": FIRST, "task": "generate", "model": "tiny"}
    nothing = {"answer": None, "error": None, "details": None}
    assert (reply.status, reply.json) == (202, {**waiting, **nothing, "state": "submitted", "is_over": False})
    gate.set()
    reply = await node.call("GET", f"{JOBS}/{FIRST}/result?wait_s=30")
    souk = {
        "job_id": JOB.hex(), "peer": PEER_TEXT, "contract_id": CONTRACT.hex(), "receipt_id": RECEIPT.hex(),
        "cost_microcredits": 7, "first_token_ms": 11, "duration_ms": 12,
    }  # fmt: skip
    usage = {"units_in": 3, "units_out": 2}
    answer = {"task": "generate", "schema": 1, "model": "tiny", "usage": usage, "souk": souk, "text": "Hello"}
    done = {"state": "closed", "is_over": True, "answer": answer | {"finish_reason": "stop"}}
    assert (reply.status, reply.json) == (200, {**waiting, **nothing, **done})


async def test_failure_of_a_job_is_its_result(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket(SLOW))
    await node.call("POST", JOBS, body=SPEC)
    reply = await node.call("GET", f"{JOBS}/{FIRST}/result?wait_s=30")
    assert (reply.status, reply.json["state"], reply.json["error"]["code"]) == (200, "expired", "deadline")


async def test_waiting_for_a_job_ends_with_the_wait_that_was_asked_for(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, trio.Event()]))
    await node.call("POST", JOBS, body=SPEC)
    reply = await node.call("GET", f"{JOBS}/{FIRST}/result?wait_s=0.01")
    assert reply.status == 202 and not reply.json["is_over"]


async def test_rerun_orders_the_same_spec_under_a_new_id(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, market := ScriptedMarket())
    await node.call("POST", JOBS, body=SPEC)
    reply = await node.call("POST", f"{JOBS}/{FIRST}/rerun")
    assert (reply.status, reply.json["job_id"]) == (202, SECOND)
    assert (await node.call("GET", f"{JOBS}/{SECOND}/result?wait_s=30")).status == 200
    first, second = market.orders
    assert first.task_input == second.task_input and first.job_id != second.job_id


async def test_key_makes_one_job_however_often_it_is_sent(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, market := ScriptedMarket())
    key = {KEY_HEADER: "k-1"}
    one = (await node.call("POST", JOBS, body=SPEC, **key)).json
    # Another order of its fields is the same spec.
    two = (await node.call("POST", JOBS, body=dict(reversed(SPEC.items())), **key)).json
    assert (one["job_id"], one["is_new"]) == (two["job_id"], not two["is_new"]) == (FIRST, True)
    reply = await node.call("POST", JOBS, body={**SPEC, "max_tokens": 6}, **key)
    assert (reply.status, reply.error["code"]) == (409, "idempotency_conflict") and FIRST in str(reply.error)
    reply = await node.call("POST", f"{JOBS}/{FIRST}/rerun", **key)
    assert (reply.status, reply.error["code"]) == (409, "idempotency_conflict")
    again = [(await node.call("POST", f"{JOBS}/{FIRST}/rerun", **{KEY_HEADER: "k-2"})).json for _ in range(2)]
    assert [it["job_id"] for it in again] == [SECOND] * 2
    await node.call("GET", f"{JOBS}/{SECOND}/result?wait_s=30")
    assert len(market.orders) == 2


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
async def test_key_is_refused_when_it_is_none(nursery: trio.Nursery, key: str) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", JOBS, body=SPEC, **{KEY_HEADER: key})
    assert (reply.status, reply.error["param"]) == (400, "Idempotency-Key") and not node.market.orders


async def test_result_of_a_job_is_gone_when_it_was_not_kept(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, config=ApiSection(results_max=1))
    for _ in range(2):
        await node.call("POST", JOBS, body=SPEC)
        await node.call("GET", f"{JOBS}/{SECOND}/result?wait_s=30")
        await node.call("GET", f"{JOBS}/{FIRST}/result?wait_s=30")
    node.view.records += [purchase(9)]
    for job, why in ((FIRST, "newer jobs needed the room"), ("09" * 16, "kept in memory only")):
        reply = await node.call("GET", f"{JOBS}/{job}/result")
        assert (reply.status, reply.error["code"]) == (410, "result_gone") and why in str(reply.error["message"])
        reply = await node.call("POST", f"{JOBS}/{job}/rerun")
        assert (reply.status, reply.error["code"]) == (410, "spec_gone") and why in str(reply.error["message"])


@pytest.mark.parametrize(
    ("job", "status", "code"),
    [("abcd", 404, "job_not_found"), ("abc", 400, "invalid_value"), (JOB.hex(), 409, "not_ours")],
)
async def test_job_is_refused_when_it_is_no_order_of_ours(
    nursery: trio.Nursery, job: str, status: int, code: str
) -> None:
    node = await serve_node(nursery)
    for method, path in (("GET", "result"), ("POST", "rerun")):
        reply = await node.call(method, f"{JOBS}/{job}/{path}")
        assert (reply.status, reply.error["code"]) == (status, code)


async def test_job_is_refused_when_its_prefix_means_one_of_the_journal_too(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    await node.call("POST", JOBS, body=SPEC)
    node.view.records = [purchase(1)]
    assert (await node.call("GET", f"{JOBS}/{FIRST[:4]}/result?wait_s=30")).status == 200  # the same job
    node.view.records = [replace(purchase(1), job_id=JobId(b"\x01" * 15 + b"\x02"))]
    for method, path in (("GET", "result"), ("POST", "rerun")):
        reply = await node.call(method, f"{JOBS}/{FIRST[:4]}/{path}")
        assert (reply.status, reply.error["param"]) == (400, "job") and "2 jobs" in str(reply.error["message"])
    assert (await node.call("GET", f"{JOBS}/{FIRST}/result")).status == 200


async def test_jobs_take_the_places_that_all_orders_share(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery, ScriptedMarket([ASKING, trio.Event()]), config=ApiSection(max_queue=1))
    assert (await node.call("POST", JOBS, body=SPEC)).status == 202
    reply = await node.call("POST", JOBS, body=SPEC)
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "queue_full", "1")


async def test_quote_of_a_spec_is_for_that_very_job(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    reply = await node.call("POST", f"{JOBS}/quote", body=SPEC)
    assert [it["price_max_microcredits"] for it in reply.json["quotes"]] == [11, None]
    reply = await node.call("POST", f"{JOBS}/quote", body={**SPEC, "souk": {"on": "local"}})
    assert (reply.status, reply.error["param"]) == (400, "souk.on")
