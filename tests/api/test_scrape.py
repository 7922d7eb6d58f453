"""The page that Prometheus reads, from a market in virtual time and from the served API."""

import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from node.api.daemon_view import OK, Rooms
from node.api.scrape import GPU_S_MAX, Scrape
from node.api.views import GateView
from node.config import Config
from node.execution.gpu_readings import GpuReading
from node.execution.interface import DeviceReport
from node.net.memory import MemoryFabric
from tests.api.fakes import serve_node
from tests.fakes import Script, ScriptedExecutor, served_model
from tests.market.world import Node, World, buy, order
from tests.test_metrics import Samples, parse, samples

# The names of the design (ux.md, section 9); those of GPUs come only where there is one.
NAMES = {
    "souk_build_info",
    "souk_ready",
    "souk_jobs_total",
    "souk_jobs_running",
    "souk_jobs_waiting",
    "souk_tokens_total",
    "souk_time_to_first_token_seconds",
    "souk_job_duration_seconds",
    "souk_asks_total",
    "souk_quotes_total",
    "souk_declines_total",
    "souk_contracts_total",
    "souk_inter_token_seconds",
    "souk_queue_seconds",
    "souk_model_load_seconds",
    "souk_kv_cache_usage_ratio",
    "souk_model_loaded",
    "souk_credit_microcredits",
    "souk_verifications_total",
    "souk_p2p_bytes_total",
    "souk_p2p_messages_total",
    "souk_peer_rtt_seconds",
    "souk_earned_microcredits_total",
    "souk_spent_microcredits_total",
    "souk_peers",
    "souk_adverts_total",
    "souk_p2p_rejected_total",
    "souk_http_requests_total",
    "souk_http_request_duration_seconds",
    "souk_event_loop_lag_seconds",
    "souk_worker_restarts_total",
    "souk_model_measured_tokens_per_second",
    "souk_worker_up",
    "souk_worker_quarantined",
    "souk_worker_jail",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "python_gc_collections_total",
}
OPERATE = Path(__file__).parents[2] / "docs" / "operate.md"
READING = GpuReading(
    index=0,
    name="a card",
    utilization_ratio=0.5,
    memory_used_bytes=3,
    memory_total_bytes=4,
    temperature_celsius=60,
    power_watts=None,
)

GPU = DeviceReport(
    kind="cuda",
    index=0,
    name="a card",
    architecture="sm_90",
    memory_total_bytes=4,
    memory_free_bytes=1,
    dtypes=("bf16",),
    driver=None,
    matmul_gflops=None,
    read_mb_per_s=None,
)


def read_no_gpus() -> Sequence[GpuReading]:
    raise AssertionError("a node without a GPU must not ask the driver")


def scrape_of(
    node: Node,
    *,
    checks: dict[str, str] | None = None,
    read_gpus: Callable[[], Sequence[GpuReading]] = read_no_gpus,
) -> Scrape:
    rooms = Rooms(
        config=Config(),
        party=node.party,
        network=node.network,  # type: ignore[arg-type]  # its streams are watched, the rest is the real one
        directory=node.directory,
        bans=node.bans,
        executor=node.executor,
        admission=node.admission,
        provider=node.provider,
        requester=node.requester,
        own_advert=lambda: None,
        gate=lambda: GateView(open=True, drained=False, jobs=0),
    )
    return Scrape(rooms, checks or {"worker": OK}, read_gpus=read_gpus)


async def read(scrape: Scrape, clock: MockClock) -> Samples:
    """Scrape while virtual time stands still: it does not wait for the thread that writes the page."""
    clock.autojump_threshold = math.inf
    page, _content_type = await scrape("")
    clock.autojump_threshold = 0
    return parse(page)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    return World(nursery, fabric, tmp_path)


async def test_page_has_every_name_after_a_job(world: World, autojump_clock: MockClock) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor())
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    _ = (await buy(buyer, order())).finished
    page, _content_type = await scrape_of(buyer)("")
    shown = {line.split()[2] for line in page.decode().splitlines() if line.startswith("# TYPE")}
    assert shown >= NAMES
    ours = {name for name in shown if name.startswith("souk_") and not name.endswith("_created")}
    listed = re.findall(r"^\| `(souk_\w+)` \|", OPERATE.read_text("utf-8"), re.MULTILINE)
    assert ours == {name for name in listed if not name.startswith("souk_gpu_")}
    assert not [name for name in shown if "gpu" in name]
    found = parse(page)
    assert found["souk_peers", ("connected",)] == 1 and found["souk_peers", ("known",)] == 1
    assert found["souk_peers", ("banned",)] == 0
    assert found["souk_ready", ()] == 1
    assert (await read(scrape_of(buyer, checks={"worker": "starting"}), autojump_clock))["souk_ready", ()] == 0


async def test_page_tells_waiting_jobs_from_running_ones(world: World, autojump_clock: MockClock) -> None:
    seller = await world.node("seller", executor=ScriptedExecutor(script=Script(first_s=5, step_s=1)))
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    idle = await read(scrape_of(seller), autojump_clock)
    assert idle["souk_jobs_running", ("tiny", "worker")] == idle["souk_jobs_waiting", ("tiny", "worker")] == 0
    async with trio.open_nursery() as jobs:
        jobs.start_soon(buy, buyer, order())
        jobs.start_soon(buy, seller, order(where="local"))
        await trio.sleep(2)
        early = await read(scrape_of(seller), autojump_clock) | await read(scrape_of(buyer), autojump_clock)
        await trio.sleep(6)
        late = await read(scrape_of(seller), autojump_clock) | await read(scrape_of(buyer), autojump_clock)
        jobs.cancel_scope.cancel()
    for role in ("worker", "requester"):
        assert early["souk_jobs_waiting", ("tiny", role)] == 1
        assert late["souk_jobs_running", ("tiny", role)] == 1
        assert late.get(("souk_jobs_waiting", ("tiny", role)), 0) == 0
    assert late["souk_jobs_running", ("tiny", "local")] == 1
    assert ("souk_jobs_running", ("tiny", "local")) not in await read(scrape_of(seller), autojump_clock)


async def test_page_tells_what_models_hold_and_what_peers_have_open(
    world: World, autojump_clock: MockClock
) -> None:
    busy, idle, encoder = served_model(), served_model("idle"), served_model("encoder", task="embed")
    executor = ScriptedExecutor(
        served=(replace(busy, tokens_held=8 * 1024), replace(idle, is_loaded=False), encoder),
        script=Script(step_s=1),
    )
    seller = await world.node("seller", executor=executor)
    buyer = await world.node("buyer")
    world.introduce(buyer, seller)
    async with trio.open_nursery() as jobs:
        jobs.start_soon(buy, buyer, order())
        await trio.sleep(5)
        found = await read(scrape_of(seller), autojump_clock)
        credit = seller.admission.credit_given(trio.current_time())
        jobs.cancel_scope.cancel()
    assert found["souk_kv_cache_usage_ratio", ("cpu", "tiny")] == 0.25
    assert ("souk_kv_cache_usage_ratio", ("cpu", "idle")) not in found
    assert ("souk_kv_cache_usage_ratio", ("cpu", "encoder")) not in found
    assert [found["souk_model_loaded", ("cpu", name)] for name in ("tiny", "idle", "encoder")] == [1, 0, 1]
    assert found["souk_credit_microcredits", ()] == credit > 0


class GpuExecutor(ScriptedExecutor):
    def devices(self) -> tuple[DeviceReport, ...]:
        return (GPU,)


async def test_page_shows_gpus_when_one_is_served(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("seller", executor=GpuExecutor())
    found = await read(scrape_of(node, read_gpus=lambda: [READING]), autojump_clock)
    assert found["souk_gpu_utilization_ratio", ("0", "a card")] == 0.5
    assert found["souk_gpu_memory_used_bytes", ("0", "a card")] == 3
    # This card does not tell.
    assert ("souk_gpu_power_watts", ("0", "a card")) not in found


async def test_page_comes_without_gpus_when_the_driver_hangs(world: World, autojump_clock: MockClock) -> None:
    node = await world.node("seller", executor=GpuExecutor())
    release = threading.Event()
    scrape = scrape_of(node, read_gpus=lambda: [READING] if release.wait() else [])
    before = trio.current_time()
    page, _content_type = await scrape("")
    assert b"souk_ready" in page and b"souk_gpu" not in page
    assert trio.current_time() >= before + GPU_S_MAX
    release.set()


async def test_metrics_need_the_token_and_are_logged_at_debug(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    node = await serve_node(nursery)
    caplog.set_level(logging.DEBUG, logger="node.api.guard")
    refused = await node.call("GET", "/metrics", authorization="Bearer wrong")
    assert refused.status == 401
    reply = await node.call("GET", "/metrics")
    assert reply.status == 200 and reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert ("souk_asks_total", ()) in parse(reply.body)
    lines = [record for record in caplog.records if record.getMessage() == "request ended"]
    assert lines and {record.levelno for record in lines} == {logging.DEBUG}
    open_metrics = await node.call("GET", "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.body.endswith(b"# EOF\n")


async def test_requests_are_counted_by_route_when_paths_are_made_up(nursery: trio.Nursery) -> None:
    node = await serve_node(nursery)
    for path in ("/v1/models/org/tiny", "/v1/models/huge", "/nothing/1", "/nothing/2", "/healthz"):
        await node.call("GET", path)
    await node.call("POST", "/healthz")
    await node.call("GET", "/healthz", host="example.com")
    # A client may have its answer before the request is over.
    await trio.testing.wait_all_tasks_blocked(0.01)
    found = samples(node.metrics)
    name = "souk_http_requests_total"
    assert {labels: found[key, labels] for key, labels in found if key == name} == {
        ("GET", "/v1/models/{model:path}", "200"): 1,
        ("GET", "/v1/models/{model:path}", "404"): 1,
        ("GET", "other", "404"): 2,
        ("GET", "/healthz", "200"): 1,
        ("POST", "/healthz", "405"): 1,
        ("GET", "other", "403"): 1,
    }
    assert found["souk_http_request_duration_seconds_count", ("GET", "/healthz")] == 1
