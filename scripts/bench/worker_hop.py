"""What the worker process costs: tokens per second through it beside the engine in this process; and whether the
API still answers at once while a job runs.

Both arms have the same weights, threads, slots and dtype, run in turn within a round, and must give the same text.
Processor time is told beside the wall's: on a machine with other work it is the figure to believe.
"""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from node.cli.client import Daemon
from node.config import WorkerSection
from node.execution.interface import Piece
from node.execution.pool import WorkerPool
from node.models.store import ModelStore
from protocol.task import ChatMessage, GenerateInput, Sampling
from scripts.bench.in_process import CONTEXT_TOKENS, EngineAlone, load_engine
from scripts.bench.local_net import LOCAL, LocalNet, Question, TimedAnswer, add_net_option, ask, local_net
from scripts.bench.measure import Report, parser_of
from scripts.bench.mesh_tax import QUESTION, require_same

WORKER, ENGINE = "through the worker", "engine in process"
API_CALLS: Final = 200
API_PATH: Final = "/api/v1/jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    answer: TimedAnswer
    own_cpu_s: float
    """Processor time of this process: the daemon's part where the worker answers."""
    cpu_s: float
    """With the worker's."""


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    add_net_option(parser)
    options = parser.parse_args()
    report = Report("worker hop")
    with local_net(options.dir) as net:
        trio.run(measure_hop, report, net.provider_config(), net.model, options.rounds)
        measure_api(report, net)
    report.print(as_json=options.json)


async def measure_hop(report: Report, config: Mapping[str, Any], model: str, rounds: int) -> None:  # Any: TOML
    engine = load_engine(config, model)
    worker = config["worker"]
    section = WorkerSection(
        devices="cpu",
        dtype=worker.get("dtype", "auto"),
        threads=worker["threads"],
        slots=worker["slots"],
        context_tokens_max=CONTEXT_TOKENS,
    )
    pool = WorkerPool(section, ModelStore(Path(config["models"]["dir"])), (model,))
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        (state,) = pool.workers()
        report.settings |= {"model": model, "dtype": engine.dtype, "jail": state.jail}
        both = [await run_round(pool, engine, number) for number in range(rounds + 1)]
        nursery.cancel_scope.cancel()
    for arms in both:
        require_same({name: it.answer for name, it in arms.items()})
    report.settings["tokens"] = both[0][WORKER].answer.tokens
    # The first round warms up.
    for name in (WORKER, ENGINE):
        report.add(f"decode, {name}", "tokens/s", [it[name].answer.decode_tokens_per_s for it in both[1:]])
    ratios = [it[WORKER].answer.decode_tokens_per_s / it[ENGINE].answer.decode_tokens_per_s for it in both[1:]]
    report.add("decode, worker ÷ in process", "ratio", ratios)
    cpu = [it[ENGINE].cpu_s / it[WORKER].cpu_s for it in both[1:]]
    report.add("tokens by processor time, worker ÷ in process", "ratio", cpu)
    hops = [it[WORKER] for it in both[1:]]
    report.add("daemon's processor time of a token", "µs", [1e6 * it.own_cpu_s / it.answer.tokens for it in hops])
    report.add("daemon's share of the processor time", "%", [100 * it.own_cpu_s / it.cpu_s for it in hops])


async def run_round(pool: WorkerPool, engine: EngineAlone, number: int) -> dict[str, Measured]:
    """Run both arms; every other round begins with the other one, since drift hits both then."""
    arms: dict[str, Measured] = {}
    for name in (WORKER, ENGINE) if number % 2 else (ENGINE, WORKER):
        before, own_before = _cpu_s(), time.process_time()
        answer = await ask_pool(pool, QUESTION, number) if name == WORKER else engine.ask(QUESTION)
        own = time.process_time() - own_before
        arms[name] = Measured(answer=answer, own_cpu_s=own, cpu_s=_cpu_s() - before)
    return arms


async def ask_pool(pool: WorkerPool, question: Question, number: int) -> TimedAnswer:
    began = time.perf_counter()
    texts: list[str] = []
    times: list[float] = []
    tokens = 0
    task = GenerateInput(messages=(ChatMessage(role="user", content=question.text),))
    sampling = Sampling(temperature_milli=round(question.temperature * 1000), seed=question.seed)
    prompt = await pool.prepare(f"hop {number}", pool.models()[0].model_id, task, question.tokens_max)
    post, pieces = trio.open_memory_channel[Piece](question.tokens_max + 1)

    async def generate() -> None:
        with post:
            await pool.generate(prompt, sampling, tokens_out_max=question.tokens_max, sink=post)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(generate)
        async for piece in pieces:
            tokens += len(piece.tokens)
            if piece.text:
                texts.append(piece.text)
                times.append(time.perf_counter() - began)
    end_s = time.perf_counter() - began
    return TimedAnswer(text="".join(texts), tokens=tokens, first_s=times[0], last_s=times[-1], end_s=end_s)


def measure_api(report: Report, net: LocalNet) -> None:
    """Call the provider's API in turn while it is idle and while it answers."""
    latencies: dict[str, list[float]] = {"idle": [], "while a job runs": []}
    for _ in range(4):
        latencies["idle"] += call_api(net.provider, API_CALLS // 4)
        job = threading.Thread(target=ask, args=(net.provider, net.model, QUESTION, LOCAL))
        job.start()
        while job.is_alive():
            latencies["while a job runs"] += call_api(net.provider, 5)
        job.join()
    for name, seconds in latencies.items():
        report.add(f"API, {name}, p99", "ms", [percentile(seconds, 0.99) * 1000])
        report.add(f"API, {name}, median", "ms", [percentile(seconds, 0.5) * 1000])


def call_api(daemon: Daemon, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        daemon.get(API_PATH)
        found.append(time.perf_counter() - began)
    return found


def percentile(samples: list[float], share: float) -> float:
    return sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]


def _cpu_s() -> float:
    """Processor time of this process and the workers below it."""
    processes = [psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children(recursive=True)]
    return sum(it.cpu_times().user + it.cpu_times().system for it in processes)


if __name__ == "__main__":
    main()
