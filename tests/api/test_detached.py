"""Detached jobs by virtual clock: how long they are kept, what is forgotten for room, and what ends them."""

import gc
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from node.api import detached
from node.api.detached import DetachedJob, DetachedJobs
from node.api.detached_views import GenerateAnswer, JobResult
from node.api.errors import ApiError
from node.api.job_specs import EmbedSpec, GenerateSpec, JobSpec, spec_order
from node.config import ApiSection
from node.market.order import (
    DeadlineError,
    InputRefusedError,
    NobodyWillingError,
    OrderCancelledError,
    Output,
    PassedOver,
)
from protocol.tasks.embed import EmbedOutput
from protocol.units import JobId
from tests.api.fakes import ANSWERED, ASKING, CONTRACTED, FINISHED, PEER, ScriptedMarket, Step


def detached_id(number: int) -> JobId:
    """Return the id of the so many-th detached job of a fake node."""
    return JobId(bytes([number]) * 16)


SPEC = GenerateSpec(model="tiny", prompt="Once")
MIB = 1 << 20


@asynccontextmanager
async def running(*script: Step, **config: int) -> AsyncIterator[tuple[DetachedJobs, ScriptedMarket]]:
    market = ScriptedMarket(script or ANSWERED)
    async with trio.open_nursery() as nursery:
        jobs = DetachedJobs(market, ApiSection(**config))
        nursery.start_soon(jobs.run)
        yield jobs, market
        nursery.cancel_scope.cancel()


def start(jobs: DetachedJobs, number: int = 1, *, spec: JobSpec = SPEC, key: str | None = None) -> DetachedJob:
    return jobs.start(spec, replace(spec_order(spec, 0), job_id=detached_id(number)), key=key)


def result(job: DetachedJob) -> JobResult:
    assert job.over.is_set() and job.result is not None
    return msgspec.json.decode(job.result, type=JobResult)


async def test_answer_is_kept_for_its_time_and_then_forgotten(autojump_clock: MockClock) -> None:
    async with running(results_keep_s=60) as (jobs, market):
        job = start(jobs)
        await job.over.wait()
        assert [order.job_id for order in market.orders] == [job.job_id]
        answer = result(job).answer
        assert isinstance(answer, GenerateAnswer) and (answer.text, answer.usage.units_out) == ("Hello", 2)
        await trio.sleep(59)
        assert job.spec is not None
        await trio.sleep(2)
        assert (job.spec, job.result, job.size_bytes) == (None, None, 0)
        assert "kept for 60 s" in job.gone and jobs.find(job.job_id.hex()[:4]) == [job]


async def test_nothing_uncounted_is_held_while_a_result_is_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Noted(detached._Collector):
        def __init__(self, *args: Any) -> None:  # what its parent takes
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(detached, "_Collector", Noted)
    async with running(results_keep_s=60) as (jobs, market):
        job = start(jobs)
        assert job.spec is not None and job.size_bytes == 2 * len(job.spec)
        await job.over.wait()
        market.orders.clear()
        await trio.sleep(1)
        gc.collect()
        assert [collector() for collector in made] == [None] and job.work is None
        assert job.spec is not None and job.result is not None
        assert job.size_bytes == len(job.spec) + len(job.result)


async def test_refused_input_names_the_field_it_came_in() -> None:
    async with running(ASKING, InputRefusedError("no tokens")) as (jobs, _market):
        job = start(jobs)
        await job.over.wait()
        error = result(job).error
        assert error is not None and (error.code, error.param) == ("input_refused", "prompt")


async def test_place_is_free_when_the_job_has_ended_and_not_before() -> None:
    gate, freed = trio.Event(), []
    async with running(ASKING, gate, *ANSWERED[1:]) as (jobs, _market):
        job = start(jobs)
        job.place.callback(freed.append, "place")
        await wait_all_tasks_blocked()
        assert not freed and job.result is None
        gate.set()
        await job.over.wait()
        assert freed == ["place"]


@pytest.mark.parametrize(
    ("failure", "state", "code"),
    [
        (NobodyWillingError((PassedOver(peer_id=PEER, code="silent", message="no"),)), "failed", "no_capacity"),
        (DeadlineError("too late"), "expired", "deadline"),
        (OrderCancelledError("by hand"), "cancelled", "cancelled"),
        (ZeroDivisionError("a bug"), "failed", "internal_error"),
    ],
)
async def test_failure_is_the_result_and_ends_no_other_job(failure: Exception, state: str, code: str) -> None:
    async with running(ASKING, failure) as (jobs, market):
        job = start(jobs)
        await job.over.wait()
        found = result(job)
        assert found.error is not None and (found.state, found.error.code, found.answer) == (state, code, None)
        assert (found.details is not None) == (code == "no_capacity")
        market.script = ANSWERED
        other = start(jobs, 2)
        await other.over.wait()
        assert result(other).state == "closed"


async def test_fetched_results_make_room_first_and_running_jobs_never(autojump_clock: MockClock) -> None:
    async with running(results_max=2, results_keep_s=60) as (jobs, market):
        old, read = start(jobs, 1), start(jobs, 2)
        await old.over.wait()
        await read.over.wait()
        read.was_read = True
        market.script = (ASKING, trio.Event())
        start(jobs, 3)
        assert (read.gone, old.gone) == ("newer jobs needed the room", "")
        start(jobs, 4)
        assert old.gone
        with pytest.raises(ApiError) as refused:
            start(jobs, 5)
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "results_full", 5)
        assert "api.results_max (2)" in str(refused.value)
        await trio.sleep(61)
        assert old.gone == "newer jobs needed the room"  # its time has nothing more to say


async def test_bytes_of_specs_and_answers_are_bounded() -> None:
    text = Output(tokens=(1,), text="x" * 12 * MIB)
    async with running(ASKING, CONTRACTED, text, FINISHED, results_bytes_max=32 * MIB) as (jobs, market):
        kept = []
        for number in (1, 2, 3):
            kept.append(start(jobs, number))
            await kept[-1].over.wait()
        assert [bool(job.gone) for job in kept] == [True, False, False]
        market.script = (ASKING, CONTRACTED, text, text, text, trio.Event())
        endless = start(jobs, 4)
        with trio.fail_after(10):
            await endless.over.wait()
        assert (error := result(endless).error) is not None and error.code == "result_too_large"
        assert market.cancelled.is_set()
        assert sum(job.size_bytes for job in jobs.find("")) == jobs._size_bytes < 32 * MIB


async def test_numbers_that_grow_in_json_are_counted_as_they_are_kept() -> None:
    vectors = [Output(result=EmbedOutput(vector=struct.pack("<2f", 0.1, 0.2)))] * 3
    async with running(ASKING, *vectors, FINISHED) as (jobs, _market):
        job = start(jobs, spec=EmbedSpec(model="tiny", texts=["a", "b", "c"]))
        await job.over.wait()
        assert job.result is not None and job.size_bytes > len(job.result)
        assert [len(it.vector) for it in result(job).answer.vectors] == [2, 2, 2]  # type: ignore[union-attr]


async def test_key_makes_one_job_and_is_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "FORGOTTEN_MAX", 1)
    async with running(results_max=1) as (jobs, _market):
        made = []
        for number in (1, 2, 3):
            made.append(start(jobs, number, key=f"k{number}"))
            await made[-1].over.wait()
        first, second, third = made
        assert jobs.replayed("k3", b"") is third and jobs.replayed("k2", b"") is second
        assert jobs.replayed("k1", b"") is None and jobs.find(first.job_id.hex()) == []
        assert jobs.replayed(None, b"") is None
        with pytest.raises(ApiError) as refused:
            jobs.replayed("k3", b"other")
        assert (refused.value.status, refused.value.code) == (409, "idempotency_conflict")


async def test_stopping_ends_the_jobs_that_run_as_if_their_clients_had_left() -> None:
    freed: list[str] = []
    async with running(ASKING, trio.Event()) as (jobs, market):
        start(jobs).place.callback(freed.append, "place")
        await market.taken.wait()
    assert market.cancelled.is_set() and freed == ["place"]
