"""A cold start of a worker: what it costs until it has its device, its model and its first token.

    python -m scripts.bench.worker_start [--models DIR] [--model NAME] [--rounds 5]

Each round starts a process as the daemon does after a death: in the jail, with nothing measured again; once more
inside bubblewrap where that works. CPU time is the new process's own, so it can be compared on a busy machine;
wall time cannot.
"""

import sys
import time
from pathlib import Path

import psutil
import trio

from node.execution.bubblewrap import find_bubblewrap
from node.execution.frames import Load, Prepare, Setup, Start
from node.execution.jail import Jail
from node.execution.model_fit import PREFILL_TOKENS
from node.execution.spawn import WorkerLimits
from node.execution.worker_process import WorkerProcess
from node.models.store import ModelStore, StoredModel
from protocol.fields import Dtype
from scripts.bench.measure import Report, parser_of

STAGES = ("has its device", "has its model", "first token")


async def start_once(model: StoredModel, dtype: Dtype, bubblewrap: str) -> list[tuple[float, float]]:
    """Return (wall, CPU) in milliseconds from the start to the end of each stage."""
    process = WorkerProcess(
        Setup(device="cpu", threads=1),
        silence_s_max=120.0,
        environment={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        limits=WorkerLimits(jail=Jail(mode="auto", readable=(str(model.folder.parent),), bubblewrap=bubblewrap)),
    )
    began, found = time.perf_counter(), []

    def note() -> None:
        times = psutil.Process(process.pid).cpu_times()
        found.append(((time.perf_counter() - began) * 1000, (times.user + times.system) * 1000))

    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        note()
        with process.open_request(1) as request:
            await request.send(_load(request.number, model, dtype))
            await request.receive()
        note()
        with process.open_request(3) as request:
            await request.send(_prepare(request.number, model))
            await request.receive()
            start = Start(request=request.number, temperature_milli=0, top_p_milli=1000, seed=0, tokens_out_max=1)
            await request.send(start)
            await request.receive()
        note()
        nursery.cancel_scope.cancel()
    return found


def _load(request: int, model: StoredModel, dtype: Dtype) -> Load:
    return Load(
        request=request,
        model=model.model_id,
        folder=str(model.folder),
        dtype=dtype,
        slots=4,
        context_tokens=512,
        prefill_tokens=PREFILL_TOKENS["cpu"],
    )


def _prepare(request: int, model: StoredModel) -> Prepare:
    return Prepare(
        request=request,
        model=model.model_id,
        messages=(),
        prompt="A worker starts.",
        stop=(),
        held=b"",
        tokens_out_max=1,
    )


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name in the store (default %(default)s)")
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "share" / "models", help="the store")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="default %(default)s")
    arguments = parser.parse_args()
    model = ModelStore(arguments.models).find(arguments.model)
    report = Report(benchmark="worker_start", settings={"model": model.name, "dtype": arguments.dtype})
    program = find_bubblewrap(cuda=False)
    arms = {"": "", "in bubblewrap: ": program} if program else {"": ""}
    found: dict[str, list[list[tuple[float, float]]]] = {arm: [] for arm in arms}
    for _ in range(arguments.rounds):
        for arm, bubblewrap in arms.items():
            found[arm].append(trio.run(start_once, model, arguments.dtype, bubblewrap))
    for arm, rounds in found.items():
        for at, stage in enumerate(STAGES):
            report.add(f"{arm}{stage}, wall", "ms", [stages[at][0] for stages in rounds])
            report.add(f"{arm}{stage}, CPU", "ms", [stages[at][1] for stages in rounds])
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
