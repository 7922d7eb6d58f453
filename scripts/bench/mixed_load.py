"""Eight answers run while a prompt of 2,000 tokens arrives: the longest time that one of them waits for a token.

The engine in this process, without worker and network. The promise is ``worker.inter_token_ms``. The same with a
constant budget of prompt tokens stands beside it: small ones keep the newcomer waiting, large ones everybody else.
Processor time is told beside the wall's: on a machine with other work a pass also waits for its core.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from node.execution.engine.backend import TORCH_DTYPES
from node.execution.engine.engine import Engine
from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.torch_device import describe_device, open_device
from node.execution.model_fit import choose_dtype
from node.execution.shape import read_shape
from node.models.store import ModelStore
from protocol.task import Sampling
from scripts.bench.measure import Report, parser_of

STREAMS: Final = 8
PROMPT_TOKENS: Final = 2000
ANSWER_TOKENS_MAX: Final = 1000
"""Of the eight: more than are chosen before the prompt is read, even at ``pace.TOKENS_MIN`` a pass."""
PREFILL_TOKENS: Final = 512
"""Of one pass at most, as ``node.execution.loading`` has it for a CPU."""
WARM_STEPS: Final = 20
_NEWCOMER: Final = STREAMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arrival: milliseconds."""

    gap_before: float
    """The longest between two tokens of an answer before the prompt came."""
    gap_longest: float
    """The longest from its arrival to its first token."""
    gap_longest_cpu: float
    """The same in processor time: what it would be with a core of its own."""
    first_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One forward pass: seconds, and whom it gave a token."""

    wall_s: float
    cpu_s: float
    requests: frozenset[int]


def arrive(model: Llama, *, prompt_tokens: int, prefill_tokens: int, inter_token_ms: int) -> Run:
    """Let a long prompt come to running answers, and time every pass until its first token."""
    engine = Engine(
        model,
        slots=STREAMS + 1,
        context_tokens=max(prompt_tokens, ANSWER_TOKENS_MAX) + 64,
        prefill_tokens=prefill_tokens,
        inter_token_s=inter_token_ms / 1000,
    )
    for request in range(STREAMS):
        engine.add(_sequence(model, request, tokens=40 + request, out=ANSWER_TOKENS_MAX))
    while len(engine.step()) < STREAMS:
        pass
    before = [_timed_step(engine) for _ in range(WARM_STEPS)]
    engine.add(_sequence(model, _NEWCOMER, tokens=prompt_tokens, out=2))
    passes = [_timed_step(engine)]
    while _NEWCOMER not in passes[-1].requests:
        passes.append(_timed_step(engine))
    return Run(
        gap_before=max(it.wall_s for it in before) * 1000,
        gap_longest=max(it.wall_s for it in passes) * 1000,
        gap_longest_cpu=max(it.cpu_s for it in passes) * 1000,
        first_token=sum(it.wall_s for it in passes) * 1000,
    )


def _timed_step(engine: Engine) -> Pass:
    began, began_cpu = time.perf_counter(), time.process_time()
    chosen = engine.step()
    return Pass(
        wall_s=time.perf_counter() - began,
        cpu_s=time.process_time() - began_cpu,
        requests=frozenset(item.request for item in chosen),
    )


def _sequence(model: Llama, request: int, *, tokens: int, out: int) -> Sequence:
    first = 97 * request + 11
    return Sequence(
        request=request,
        tokens=[(first + 13 * i) % model.shape.vocabulary for i in range(tokens)],
        prompt_tokens=tokens,
        tokens_out_max=out,
        sampling=Sampling(),
        stop_tokens=frozenset(),
    )


def main() -> None:
    """Run the arms in turns and print one row for each figure."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="name in the store (default %(default)s)")
    parser.add_argument("--models", type=Path, default=Path(sys.prefix) / "share" / "models", help="the store")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inter-token-ms", type=int, default=200, help="the promise (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="(default %(default)s)")
    parser.add_argument("--promise-only", action="store_true", help="without the constant budgets")
    options = parser.parse_args()
    report = Report("mixed_load")
    device = open_device("cpu", options.threads)
    dtype = choose_dtype("auto", describe_device(device).dtypes)
    folder = ModelStore(options.models).find(options.model).folder
    with torch.inference_mode():
        model = load_llama(folder, read_shape(folder), device=device, dtype=TORCH_DTYPES[dtype])
    report.settings = {
        "dtype": dtype,
        "threads": options.threads,
        "streams": STREAMS,
        "prompt_tokens": options.prompt_tokens,
    }
    # A promise of an hour leaves only the constant bound on a pass.
    arms = {f"promise {options.inter_token_ms} ms": (PREFILL_TOKENS, options.inter_token_ms)}
    if not options.promise_only:
        arms |= {f"constant {tokens} tokens": (tokens, 3_600_000) for tokens in (64, 512)}
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for number in range(options.rounds):
        for name, (tokens, promise_ms) in arms.items():
            run = arrive(
                model, prompt_tokens=options.prompt_tokens, prefill_tokens=tokens, inter_token_ms=promise_ms
            )
            runs[name].append(run)
            told = f"longest gap {run.gap_longest:.0f} ms, first token after {run.first_token / 1000:.1f} s"
            print(f"round {number + 1} of {options.rounds}, {name}: {told}", file=sys.stderr, flush=True)
    for name, found in runs.items():
        report.add(f"{name}: longest gap before", "ms", [run.gap_before for run in found])
        report.add(f"{name}: longest gap", "ms", [run.gap_longest for run in found])
        report.add(f"{name}: longest gap, processor time", "ms", [run.gap_longest_cpu for run in found])
        report.add(f"{name}: first token of the prompt", "ms", [run.first_token for run in found])
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
