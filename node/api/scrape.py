"""All that Prometheus is shown: what was counted, and what holds at the moment of the scrape (ux.md, section 9).

The rooms are read on the loop, GPUs and the text in threads: a scrape costs the loop about as much as a status.
"""

import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import trio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from node.api.daemon_view import OK, Rooms
from node.execution.gpu_readings import GpuReading
from node.execution.interface import ServedModel
from node.execution.worker_state import WorkerState
from node.metrics import Metrics
from protocol.task import GENERATE

GPU_S_MAX: Final = 2.0
"""A driver that hangs must not cost the rest of the page."""

log = logging.getLogger(__name__)


class Scrape:
    """Answers ``GET /metrics``."""

    def __init__(
        self, rooms: Rooms, checks: Mapping[str, str], *, read_gpus: Callable[[], Sequence[GpuReading]]
    ) -> None:
        """``checks`` is what readiness shows. ``read_gpus`` may block; asked only on a node that serves a GPU."""
        self._rooms = rooms
        self._checks = checks
        self._read_gpus = read_gpus
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._one_reader = trio.CapacityLimiter(1)

    async def __call__(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type for a scraper that accepts ``accept``."""
        metrics = self._rooms.party.metrics
        now = [*self._node(), *self._jobs(metrics), *await self._gpus()]
        return await trio.to_thread.run_sync(metrics.page, accept, now, limiter=self._one_at_a_time)

    def _node(self) -> Iterator[Metric]:
        rooms = self._rooms
        build = GaugeMetricFamily("souk_build_info", "Always 1.", labels=("version", "network"))
        build.add_metric((importlib.metadata.version("souk"), rooms.config.p2p.network), 1)
        yield build
        is_ready = all(check == OK for check in self._checks.values())
        yield GaugeMetricFamily("souk_ready", "1 when every check of /readyz is ok.", value=is_ready)
        health = rooms.party.ledger.health
        yield GaugeMetricFamily(
            "souk_ledger_writable", "1 while the ledger's disk takes what is written.", value=health.fault is None
        )
        yield CounterMetricFamily(
            "souk_ledger_write_failures", "Writes that the ledger's disk refused.", value=health.failures
        )
        peers = GaugeMetricFamily(
            "souk_peers", "Peers: connected, known by their adverts, banned by the owner.", labels=("state",)
        )
        peers.add_metric(("connected",), len(rooms.network.connected_peers()))
        peers.add_metric(("known",), len(rooms.directory.listings(rooms.party.now_ms())))
        peers.add_metric(("banned",), len(rooms.bans))
        yield peers
        yield GaugeMetricFamily(
            "souk_credit_microcredits",
            "What peers have open with this node: reserved by their contracts, or owed and not settled.",
            value=rooms.admission.credit_given(trio.current_time()),
        )
        yield from _worker_gauges(rooms.executor.workers())
        yield from self._speeds(rooms.party.metrics)
        yield from _model_gauges(rooms.executor.models(), rooms.party.metrics)

    def _jobs(self, metrics: Metrics) -> Iterator[Metric]:
        running: Counter[tuple[str, str]] = Counter()
        waiting: Counter[tuple[str, str]] = Counter()
        # Shown as 0 before anything runs: an alert on a series that is missing never fires.
        for model in self._rooms.executor.models():
            running["worker", metrics.models.label(model.name)] = 0
            waiting["worker", metrics.models.label(model.name)] = 0
        for sold in self._rooms.provider.jobs.values():
            (running if sold.tokens_out else waiting)["worker", metrics.models.label(sold.model_name)] += 1
        for bought in self._rooms.requester.jobs.values():
            (running if bought.tokens_out else waiting)["requester", metrics.models.label(bought.model_name)] += 1
        for name in self._rooms.requester.jobs_here.values():
            running["local", metrics.models.label(name)] += 1
        yield _job_gauge(
            "souk_jobs_running", "Jobs that have begun to answer; local ones from their order on.", running
        )
        yield _job_gauge("souk_jobs_waiting", "Jobs without a first token yet.", waiting)

    def _speeds(self, metrics: Metrics) -> Iterator[Metric]:
        measured = GaugeMetricFamily(
            "souk_model_measured_tokens_per_second", "Of one sequence, as advertised.", labels=("device", "model")
        )
        delivered = GaugeMetricFamily(
            "souk_model_delivered_tokens_per_second",
            "What jobs got, sharing the device.",
            labels=("device", "model"),
        )
        for model in self._rooms.executor.models():
            where = model.device, metrics.models.label(model.name)
            measured.add_metric(where, model.tokens_per_s_milli / 1000)
            if model.delivered_tokens_per_s_milli is not None:
                delivered.add_metric(where, model.delivered_tokens_per_s_milli / 1000)
        yield from (measured, delivered)

    async def _gpus(self) -> list[Metric]:
        if all(device.kind != "cuda" for device in self._rooms.executor.devices()):
            return []
        with trio.move_on_after(GPU_S_MAX):
            readings = await trio.to_thread.run_sync(
                self._read_gpus, limiter=self._one_reader, abandon_on_cancel=True
            )
            return list(_gpu_gauges(readings))
        log.debug("the driver does not answer", extra={"waited_s": GPU_S_MAX})
        return []


def _worker_gauges(workers: Sequence[WorkerState]) -> Iterator[Metric]:
    up = GaugeMetricFamily("souk_worker_up", "1 while the device's worker serves.", labels=("device",))
    quarantined = GaugeMetricFamily(
        "souk_worker_quarantined", "1 after three deaths in ten minutes, until a probe passes.", labels=("device",)
    )
    jail = GaugeMetricFamily("souk_worker_jail", "Always 1; the tier is what confines.", labels=("device", "tier"))
    for worker in workers:
        up.add_metric((worker.device,), worker.life == "serving")
        quarantined.add_metric((worker.device,), worker.life == "quarantined")
        if worker.jail is not None:
            jail.add_metric((worker.device, worker.jail), 1)
    yield from (up, quarantined, jail)


def _model_gauges(models: Sequence[ServedModel], metrics: Metrics) -> Iterator[Metric]:
    loaded = GaugeMetricFamily(
        "souk_model_loaded", "1 while a served model lies on its device.", labels=("model", "device")
    )
    cache = GaugeMetricFamily(
        "souk_kv_cache_usage_ratio",
        "Of a loaded model's cache, what the jobs that answer now have filled.",
        labels=("model", "device"),
    )
    used: Counter[tuple[str, str]] = Counter()
    room: Counter[tuple[str, str]] = Counter()
    is_loaded: dict[tuple[str, str], bool] = {}
    for model in models:
        key = metrics.models.label(model.name), model.device
        # Two of one label on one device are one series: beyond the bound of names.
        is_loaded[key] = is_loaded.get(key, False) or model.is_loaded
        if model.task == GENERATE and model.is_loaded:
            used[key] += model.tokens_held
            room[key] += model.slots * model.context_tokens
    for key, value in is_loaded.items():
        loaded.add_metric(key, value)
    for key, tokens in room.items():
        cache.add_metric(key, used[key] / tokens)
    yield from (loaded, cache)


def _job_gauge(name: str, text: str, counts: Mapping[tuple[str, str], int]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=("role", "model"))
    for labels, count in counts.items():
        gauge.add_metric(labels, count)
    return gauge


def _gpu_gauges(readings: Sequence[GpuReading]) -> Iterator[Metric]:
    shown: list[tuple[str, str, Callable[[GpuReading], float | None]]] = [
        ("utilization_ratio", "Share of the last moment in which a kernel ran.", lambda it: it.utilization_ratio),
        ("memory_used_bytes", "Of all processes.", lambda it: it.memory_used_bytes),
        ("memory_total_bytes", "Of the card.", lambda it: it.memory_total_bytes),
        ("temperature_celsius", "Of the chip.", lambda it: it.temperature_celsius),
        ("power_watts", "Drawn now.", lambda it: it.power_watts),
    ]
    for name, text, read in shown:
        gauge = GaugeMetricFamily(f"souk_gpu_{name}", text, labels=("device", "name"))
        for reading in readings:
            value = read(reading)
            if value is not None:
                gauge.add_metric((str(reading.index), reading.name), value)
        yield gauge
