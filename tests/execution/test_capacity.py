"""Measuring beside serving: by a script, on a virtual clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from node.errors import ExecutionError
from node.execution.capacity import measure_capacity
from node.execution.frames import DeviceMeasured, Measure, Measured, MeasureDevice
from node.execution.interface import DeviceReport
from protocol.units import ModelId
from tests.fakes import served_model

MODEL = served_model()
REPORT = DeviceReport(
    kind="cpu", index=0, name="a", architecture="avx2", memory_total_bytes=2, memory_free_bytes=1,
    dtypes=("fp32",), driver=None, matmul_gflops=40, read_mb_per_s=8_000,
)  # fmt: skip


@dataclass
class ScriptedWorker:
    """A device, its process, its models and its request in one; a run takes 300 ms."""

    speeds: list[int]
    report: DeviceReport | None = REPORT
    jobs: int = 0
    busy_after: int = 99
    """Runs after which a job comes."""
    asked: list[object] = field(default_factory=list)
    uses: int = 0
    number = 1
    free_bytes: int = 1 << 30

    @property
    def process(self) -> Any:  # stands for a WorkerProcess
        return self

    async def load_again(self, model_id: ModelId) -> Any:  # stands for DeviceModels
        assert model_id == MODEL.model_id
        return self

    @contextmanager
    def use(self, _model_id: ModelId) -> Iterator[None]:
        self.uses += 1
        yield
        self.uses -= 1

    @contextmanager
    def open_request(self, _events_max: int, **_: object) -> Iterator["ScriptedWorker"]:
        yield self

    async def send(self, frame: object) -> None:
        self.asked.append(frame)

    async def receive(self) -> object:
        assert self.uses == 1
        await trio.sleep(0.3)
        if isinstance(self.asked[-1], MeasureDevice):
            return DeviceMeasured(request=1, matmul_gflops=50, read_mb_per_s=9_000)
        runs = sum(isinstance(it, Measure) for it in self.asked)
        self.jobs = int(runs >= self.busy_after)
        return Measured(request=1, tokens_per_s_milli=self.speeds[(runs - 1) % len(self.speeds)])


async def test_median_of_the_runs_stands_beside_what_is_advertised(autojump_clock: MockClock) -> None:
    worker = ScriptedWorker([1_000, 9_000, 2_000])
    found = await measure_capacity(worker, MODEL, 1.0)
    assert found.runs == (1_000, 9_000, 2_000) and not found.was_cut
    measured, advertised = found.measured, found.advertised
    assert (measured.tokens_per_s_milli, measured.matmul_gflops, measured.read_mb_per_s) == (2_000, 50, 9_000)
    told = (advertised.tokens_per_s_milli, advertised.matmul_gflops, advertised.read_mb_per_s)
    assert told == (MODEL.tokens_per_s_milli, 40, 8_000)
    first = worker.asked[0]
    assert isinstance(first, MeasureDevice) and (first.dtype, first.memory_bytes) == (MODEL.dtype, 1 << 30)


@pytest.mark.parametrize(
    ("free_bytes", "told"),
    [(12 << 20, (50, None)), ((12 << 20) - 1, (None, None)), (-5, (None, None)), (128 << 20, (50, 9_000))],
)
async def test_rates_are_unknown_when_models_leave_less_memory_than_they_take(
    autojump_clock: MockClock, free_bytes: int, told: tuple[int | None, int | None]
) -> None:
    worker = ScriptedWorker([5], free_bytes=free_bytes)
    measured = (await measure_capacity(worker, MODEL, 0.0)).measured
    assert (measured.matmul_gflops, measured.read_mb_per_s) == told and measured.tokens_per_s_milli == 5
    assert any(isinstance(it, MeasureDevice) for it in worker.asked) == (told != (None, None))


async def test_one_run_is_measured_however_short_the_time(autojump_clock: MockClock) -> None:
    assert len((await measure_capacity(ScriptedWorker([5]), MODEL, 0.0)).runs) == 1


async def test_busy_device_is_not_measured(autojump_clock: MockClock) -> None:
    worker = ScriptedWorker([5], jobs=2)
    with pytest.raises(ExecutionError, match="2 jobs are at work") as refused:
        await measure_capacity(worker, MODEL, 1.0)
    assert refused.value.code == "device_busy" and worker.asked == []


async def test_job_that_comes_ends_the_measuring_with_what_there_is(autojump_clock: MockClock) -> None:
    found = await measure_capacity(ScriptedWorker([5, 6], busy_after=2), MODEL, 60.0)
    assert found.runs == (5, 6) and found.was_cut
