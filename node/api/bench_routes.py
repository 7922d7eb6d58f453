"""``POST /api/v1/bench``: what this node's devices do now, beside what is advertised of them."""

from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import device_refusal
from node.api.intake import run_unless_gone
from node.api.operations import Operation, Says, post, read_json
from node.api.views import View
from node.errors import ExecutionError
from node.execution.capacity import Capacity, Figures

SECONDS_MAX: Final = 60
_MILLI: Final = 1000


class BenchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Its name or the start of its id; None: one that is loaded."""
    device: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    """Such as ``cuda:0``; None: any that has the model."""
    seconds: Annotated[float, Meta(ge=0, le=SECONDS_MAX)] = 5.0


class FiguresView(View, frozen=True, kw_only=True):
    tokens_per_s: float | None
    """Of one sequence; of another task than text, units in."""
    matmul_gflops: int | None
    read_mb_per_s: int | None


class BenchAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    device: str
    model: str
    task: str
    dtype: str
    runs: int
    tokens_per_s_min: float
    tokens_per_s_max: float
    measured: FiguresView
    """Of all runs, the median."""
    advertised: FiguresView
    was_cut: bool
    """A job came, and the measuring ended for it."""


class Bench(Protocol):
    async def __call__(self, model: str | None, device: str | None, *, duration_s: float) -> Capacity:
        """Measure a model on a device for so long, or until a job comes. Raises: ExecutionError."""


def bench_routes(bench: Bench) -> list[Operation]:
    """Return the route."""

    async def measure(request: Request) -> Response:
        wanted = await read_json(request, BenchRequest)

        async def work() -> Response:
            try:
                return json_response(
                    bench_answer(await bench(wanted.model, wanted.device, duration_s=wanted.seconds))
                )
            except ExecutionError as exc:
                raise device_refusal(exc) from exc

        return await run_unless_gone(request.receive, work)

    says = Says(about="Measure a device that is idle.", body=BenchRequest, answer=BenchAnswer)
    return [post("/api/v1/bench", measure, says)]


def bench_answer(found: Capacity) -> BenchAnswer:
    """Return a measurement in the form of the API."""
    return BenchAnswer(
        device=found.model.device,
        model=found.model.name,
        task=found.model.task,
        dtype=found.model.dtype,
        runs=len(found.runs),
        tokens_per_s_min=min(found.runs) / _MILLI,
        tokens_per_s_max=max(found.runs) / _MILLI,
        measured=_figures(found.measured),
        advertised=_figures(found.advertised),
        was_cut=found.was_cut,
    )


def _figures(figures: Figures) -> FiguresView:
    speed = figures.tokens_per_s_milli
    return FiguresView(
        tokens_per_s=None if speed is None else speed / _MILLI,
        matmul_gflops=figures.matmul_gflops,
        read_mb_per_s=figures.read_mb_per_s,
    )
