"""The document of the API is true: every route stands in it, and real answers fit its schemas."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import quote, urlencode

import jsonschema
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from node.api import job_events, log_routes, openapi
from node.api.app import make_app
from node.api.detached import DetachedJobs
from node.api.operations import Operation
from scripts.spec.items import tensor_file
from tests.api.fakes import (
    CONTRACT,
    JOB,
    PEER_TEXT,
    Node,
    Reply,
    chat_body,
    fake_services,
    serve_node,
)
from tests.api.test_detached import detached_id
from tests.api.test_job_routes import purchase
from tests.api.test_ledger_routes import REQUESTER, FixedBooks
from tests.api.test_live import first

DOCUMENT = "/api/v1/openapi.json"
Json = Any  # a document of JSON; what does not fit fails the test
TEXT_BODY = {"model": "tiny", "prompt": "Once"}
SPEC = {"task": "embed", "model": "tiny", "texts": ["Once"]}
DETACHED = detached_id(1).hex()
TENSORS = base64.b64encode(tensor_file(("h", "U8", (1,), b"x"))).decode()

# What fills the path of each operation, and the body that it takes: an operation that is new needs a line here.
GOOD: dict[tuple[str, str], object] = {
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
    ("GET", DOCUMENT): None,
    ("GET", "/v1/models"): None,
    ("GET", "/v1/models/org/tiny"): None,
    ("POST", "/v1/chat/completions"): chat_body(),
    ("POST", "/v1/completions"): TEXT_BODY,
    ("POST", "/v1/embeddings"): {"model": "tiny", "input": "Once"},
    ("POST", "/api/v1/tasks/embed"): {"model": "tiny", "texts": ["Once"]},
    ("POST", "/api/v1/tasks/classify"): {"model": "tiny", "images": [{"width": 1, "height": 1, "rgb": "AAAA"}]},
    ("POST", "/api/v1/tasks/vad"): {"model": "tiny", "samples": "AAA="},
    ("POST", "/api/v1/tasks/forward"): {"model": "tiny", "tensors": TENSORS},
    ("GET", "/api/v1/status"): None,
    ("GET", "/api/v1/peers"): None,
    ("GET", f"/api/v1/peers/{PEER_TEXT}"): None,
    ("POST", f"/api/v1/peers/{PEER_TEXT}/ping"): None,
    ("POST", f"/api/v1/peers/{PEER_TEXT}/disconnect"): None,
    ("POST", f"/api/v1/peers/{PEER_TEXT}/ban"): {"reason": "sends garbage"},
    ("POST", f"/api/v1/peers/{PEER_TEXT}/unban"): None,
    ("GET", "/api/v1/models"): None,
    ("GET", "/api/v1/devices"): None,
    ("GET", "/api/v1/advert"): None,
    ("GET", "/api/v1/receipts?limit=3"): None,
    ("GET", f"/api/v1/receipts/{CONTRACT.hex()}"): None,
    ("POST", "/api/v1/connect"): {"address": "/good"},
    ("POST", "/api/v1/shutdown"): None,
    ("GET", "/api/v1/config"): None,
    ("POST", "/api/v1/reload"): None,
    ("GET", "/api/v1/gate"): None,
    ("POST", "/api/v1/drain"): {"grace_s": 5},
    ("POST", "/api/v1/resume"): None,
    ("POST", "/api/v1/models/tiny/load"): None,
    ("POST", "/api/v1/models/tiny/unload"): None,
    ("POST", "/api/v1/bench"): {"device": "cpu", "seconds": 1},
    ("POST", "/api/v1/quote"): {"model": "tiny"},
    ("GET", "/api/v1/why"): None,
    ("GET", "/api/v1/jobs?role=requester&state=open"): None,
    ("POST", "/api/v1/jobs"): SPEC,
    ("POST", "/api/v1/jobs/quote"): SPEC,
    ("GET", f"/api/v1/jobs/{DETACHED}/result?wait_s=5"): None,
    ("POST", f"/api/v1/jobs/{DETACHED}/rerun"): None,
    ("GET", f"/api/v1/jobs/{JOB.hex()}"): None,
    ("GET", f"/api/v1/jobs/{JOB.hex()}/why"): None,
    ("POST", f"/api/v1/jobs/{JOB.hex()}/cancel"): None,
    ("GET", "/api/v1/ledger"): None,
    ("GET", "/api/v1/ledger/audit"): None,
    ("GET", "/api/v1/ledger/entries?after=1"): None,
    ("GET", "/api/v1/ledger/statements"): None,
    ("GET", f"/api/v1/ledger/statements/{REQUESTER}"): None,
    ("GET", f"/api/v1/ledger/{PEER_TEXT}"): None,
    ("POST", "/api/v1/ledger/settle"): {"peer_id": PEER_TEXT, "amount_microcredits": 5},
    ("GET", "/api/v1/proofs"): None,
    ("POST", "/api/v1/dashboard"): None,
    ("GET", "/api/v1/logs?after=1&since_s=5&level=info&grep=x"): None,
    # The last: the token of these calls opens nothing after it.
    ("POST", "/api/v1/token/rotate"): None,
}
# One never ends, the other wants a code that is new: they have a test of their own.
APART = (("GET", "/api/v1/events"), ("POST", "/ui/session"))
BAD: dict[tuple[str, str], object] = {
    ("GET", "/v1/models/huge"): None,
    ("POST", "/v1/chat/completions"): {"model": 1},
    ("POST", "/v1/completions"): {},
    ("POST", "/v1/embeddings"): {"model": "tiny", "input": []},
    ("POST", "/api/v1/tasks/embed"): {"model": "tiny", "texts": []},
    ("POST", "/api/v1/tasks/classify"): {"model": "tiny", "images": [{"width": 1, "height": 1, "rgb": "AA=="}]},
    ("POST", "/api/v1/tasks/vad"): {"model": "tiny", "samples": "A"},
    ("POST", "/api/v1/tasks/forward"): {"model": "tiny", "tensors": "AAAA"},
    ("GET", "/api/v1/receipts?limit=0"): None,
    ("GET", "/api/v1/receipts/zz"): None,
    ("GET", "/api/v1/logs?limit=0"): None,
    ("POST", "/ui/session"): {"code": "x"},
    ("POST", "/api/v1/connect"): {"address": "/bad"},
    ("GET", "/api/v1/peers/nobody"): None,
    ("POST", f"/api/v1/peers/{PEER_TEXT}/ban"): {"reason": 1},
    ("POST", f"/api/v1/peers/{PEER_TEXT}/unban"): None,
    ("POST", "/api/v1/peers/nobody/ping"): None,
    ("POST", "/api/v1/models/huge/load"): None,
    ("POST", "/api/v1/models/huge/unload"): None,
    ("POST", "/api/v1/bench"): {"device": "cuda:0"},
    ("POST", "/api/v1/quote"): {"model": "huge"},
    ("GET", "/api/v1/jobs?role=nobody"): None,
    ("GET", "/api/v1/jobs/abcdef"): None,
    ("POST", "/api/v1/jobs"): {"task": "chat"},
    ("POST", "/api/v1/jobs/quote"): {**SPEC, "souk": {"on": "local"}},
    ("GET", f"/api/v1/jobs/{JOB.hex()}/result"): None,
    ("POST", f"/api/v1/jobs/{JOB.hex()}/rerun"): None,
    ("GET", "/api/v1/ledger/entries?after=-1"): None,
    ("GET", "/api/v1/ledger/statements?peer=x"): None,
    ("GET", "/api/v1/ledger/nobody"): None,
    ("POST", "/api/v1/ledger/settle"): {"peer_id": PEER_TEXT, "amount_microcredits": -1},
}


async def served(nursery: trio.Nursery) -> tuple[Node, Json]:
    node, books = await serve_node(nursery), FixedBooks()
    node.view.books = lambda: books  # type: ignore[attr-defined]
    node.view.records = [purchase(is_open=True)]
    return node, (await node.call("GET", DOCUMENT)).json


def paths(document: Json) -> Iterator[tuple[str, str]]:
    for path, methods in document["paths"].items():
        yield from ((method.upper(), path) for method in methods)


def find(document: Json, method: str, path: str) -> Json:
    """Return the operation that a real path belongs to: the one with the fewest holes."""
    given = path.partition("?")[0].split("/")

    def fits(template: str) -> bool:
        wanted = template.split("/")
        # The name of a model is the one parameter with slashes in it.
        if template == "/v1/models/{model}":
            return given[:3] == wanted[:3] and len(given) > 3
        return len(wanted) == len(given) and all(
            has == want or want.startswith("{") for has, want in zip(given, wanted, strict=True)
        )

    found = [it for it in document["paths"] if fits(it) and method.lower() in document["paths"][it]]
    assert found, f"{method} {path} is not in the document"
    return document["paths"][min(found, key=lambda it: it.count("{"))][method.lower()]


def check(document: Json, operation: Json, reply: Reply) -> None:
    """Hold a real answer against what the document says of it."""
    told = operation["responses"].get(str(reply.status), operation["responses"]["default"])
    if "content" not in told:
        return
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in told["content"], f"{reply.status} in {kind}"
    if kind == "application/json":
        validate(document, told["content"][kind]["schema"], reply.json)


def validate(document: Json, schema: Json, value: object) -> None:
    jsonschema.Draft202012Validator(schema | {"components": document["components"]}).validate(value)


async def call_all(nursery: trio.Nursery, calls: dict[tuple[str, str], object], expected: range) -> None:
    node, document = await served(nursery)
    for (method, path), body in calls.items():
        reply = await node.call(method, path, body=body)
        assert reply.status in expected, (method, path, reply.body)
        check(document, find(document, method, path), reply)


async def test_answers_fit_their_schemas_when_all_is_well(nursery: trio.Nursery) -> None:
    await call_all(nursery, GOOD, range(200, 300))


async def test_snapshot_and_session_fit_their_schemas(nursery: trio.Nursery) -> None:
    node, document = await served(nursery)
    code = (await node.call("POST", "/api/v1/dashboard")).json["code"]
    check(document, find(document, *APART[1]), await node.call(*APART[1], body={"code": code}))
    snapshot = await first(node)
    answers = find(document, *APART[0])["responses"]["200"]["content"]
    validate(document, answers["text/event-stream"]["schema"], snapshot)


async def test_errors_fit_their_schema(nursery: trio.Nursery) -> None:
    await call_all(nursery, BAD, range(400, 600))


async def test_every_operation_of_the_document_is_called_by_these_tests(nursery: trio.Nursery) -> None:
    _node, document = await served(nursery)
    # Steps of jobs and the log do not end either: test_job_events.py and test_log_routes.py follow them.
    followed = (*GOOD, *APART, ("GET", job_events.PATH), ("GET", log_routes.EVENTS_PATH))
    called = [id(find(document, method, path)) for method, path in followed]
    assert {it for it in paths(document) if id(document["paths"][it[1]][it[0].lower()]) not in called} == set()


def test_every_route_stands_in_the_document() -> None:
    listed = [(it.method, it.path) for it in routes()]
    assert len(set(listed)) == len(listed)
    assert {path.replace(":path", "") for _method, path in listed} == set(openapi.document(routes())["paths"])


async def test_document_is_one_of_openapi_31(nursery: trio.Nursery) -> None:
    _node, document = await served(nursery)
    assert document["openapi"] == "3.1.0" and document["security"] == [{"token": []}]
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = [it["operationId"] for methods in document["paths"].values() for it in methods.values()]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        for it in methods.values():
            holes = {p["name"] for p in it.get("parameters", []) if p["in"] == "path"}
            assert holes == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert it["summary"].endswith(".")
    # Every reference leads somewhere.
    text = json.dumps(document)
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


async def test_streamed_chunks_fit_their_schema(nursery: trio.Nursery) -> None:
    node, document = await served(nursery)
    for path, body in (("/v1/chat/completions", chat_body()), ("/v1/completions", TEXT_BODY)):
        more = {"stream": True, "stream_options": {"include_usage": True}}
        reply = await node.call("POST", path, body={**body, **more})
        schema = find(document, "POST", path)["responses"]["200"]["content"]["text/event-stream"]["schema"]
        events = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n")]
        chunks = [json.loads(event) for event in events if event.startswith("{")]
        assert len(chunks) == 4
        for chunk in chunks:
            validate(document, schema, chunk)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(scalars, lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text(max_size=8), it))


def routes() -> list[Operation]:
    services = fake_services()
    guard: Any = make_app(services, DetachedJobs(services.market, services.config))  # Any: looks inside
    app: Starlette = guard._app
    others = [route.path for route in app.routes if isinstance(route, Route) and not isinstance(route, Operation)]
    assert others == ["/", "/ui/{name}"], "the dashboard's files alone may say nothing of themselves"
    return [route for route in app.routes if isinstance(route, Operation)]


# Those that do not end, and those that end something.
APART_PATHS = (
    "/api/v1/shutdown",
    "/api/v1/events",
    "/api/v1/token/rotate",
    DOCUMENT,
    job_events.PATH,
    log_routes.EVENTS_PATH,
)
CALLS = [it for it in routes() if it.path not in APART_PATHS]


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, object]:
    """Draw a request whose fields and parameters have the right names, and values of any kind."""
    route = draw(st.sampled_from(CALLS))
    hole = draw(st.sampled_from((JOB.hex(), PEER_TEXT, "tiny")) | st.text(min_size=1, max_size=12))
    path = "".join(
        quote(hole, safe="") if part.startswith("{") else part for part in re.split(r"({.*?})", route.path)
    )
    if (query := route.says.query) is not None:
        path += "?" + urlencode(
            draw(st.dictionaries(st.sampled_from(query.__struct_fields__), st.text(max_size=8)))
        )
    if (form := route.says.body) is None:
        return route.method, path, None
    names = [name for kind in get_args(form) or (form,) for name in kind.__struct_fields__]
    return route.method, path, draw(st.dictionaries(st.sampled_from(names), values) | values)


async def send(requests: list[tuple[str, str, object]]) -> None:
    async with trio.open_nursery() as nursery:
        node, document = await served(nursery)
        for method, path, body in requests:
            reply = await node.call(method, path, body=body)
            assert reply.status < 500 or reply.error["code"] == "unreachable", (method, path, body, reply.body)
            check(document, find(document, method, path), reply)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(calls(), min_size=25, max_size=25))
def test_operations_answer_as_documented_whatever_they_are_asked(requests: list[tuple[str, str, object]]) -> None:
    trio.run(send, requests)


@pytest.mark.deep
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(calls(), min_size=25, max_size=25))
def test_operations_answer_as_documented_under_ten_thousand_requests(
    requests: list[tuple[str, str, object]],
) -> None:
    trio.run(send, requests)
