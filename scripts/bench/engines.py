"""souk's engine beside others on the same weights: decode at 1 to 16 sequences, and the first token of a prompt.

Every engine stays loaded in a process of its own and is asked in turn, so that all meet the same machine; their
environments are made by ``peers/install``. Greedy tokens are compared first. How a figure is taken: a call that
gives N tokens for each of B prompts, less a call that gives one, by N - 1 tokens.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from node.models.store import ModelStore
from scripts.bench.measure import ROOT, Report, Row

PEERS: Final = Path(__file__).parent / "peers"
MODEL: Final = "smollm2-135m-instruct"
BATCHES: Final = (1, 4, 8, 16)
PROMPT_TOKENS: Final = 40
LONG_PROMPT_TOKENS: Final = 512
CONTEXT: Final = 640
SLOTS: Final = max(BATCHES)
COUNT: Final = 33
"""New tokens of a decode measurement, the first included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """An engine: its interpreter, program and arguments."""

    name: str
    command: tuple[str, ...]


@dataclass(slots=True)
class Samples:
    """What one arm was measured at, a sample a round, by the clock that was asked for."""

    rates: dict[int, list[float]] = field(default_factory=dict)
    first_ms: list[float] = field(default_factory=list)


class Process:
    """One engine that runs and answers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, request: Mapping[str, object] | None = None) -> dict[str, Any]:  # Any: JSON of our own programs
        """Return the answer to a request, or the first line that the program says by itself."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if request is not None:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with {self._process.wait()}; its log tells why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(arm: Arm, log: Path) -> Iterator[Process]:
    """Start an engine and end it after the block; what it prints goes to ``log``."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            arm.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )
        try:
            started = Process(process)
            assert started.ask()["ready"]
            yield started
        finally:
            process.kill()
            process.wait()


def arms(peers: Path, folder: Path, threads: int, wanted: set[str]) -> list[Arm]:
    """Return every engine, ours first."""
    own, hf, vllm, llama = sys.executable, *(str(peers / it / "bin/python") for it in ("hf", "vllm", "llama"))
    sizes = (str(SLOTS), str(CONTEXT))
    at = str(threads)

    def program(name: str) -> str:
        return str(PEERS / name)

    every = [
        Arm(name="souk", command=(own, program("own.py"), str(folder), at, *sizes)),
        Arm(
            name="souk-compiled",
            command=(own, program("own.py"), str(folder), at, *sizes, str(peers / "compiled")),
        ),
        Arm(name="transformers", command=(hf, program("hf.py"), str(folder), at, *sizes, "generate")),
        Arm(name="transformers-cb", command=(hf, program("hf.py"), str(folder), at, *sizes, "continuous")),
        Arm(name="vllm", command=(vllm, program("vllm_cpu.py"), str(folder), at, *sizes, "eager")),
        Arm(name="vllm-compiled", command=(vllm, program("vllm_cpu.py"), str(folder), at, *sizes, "compiled")),
        Arm(
            name="llama.cpp",
            command=(llama, program("llama_cpp_batch.py"), str(peers / "weights.gguf"), at, *sizes),
        ),
    ]
    return [arm for arm in every if not wanted or arm.name in wanted]


def read_corpus(folder: Path) -> list[int]:
    """Return a long English text as the model's tokens: this project's specification."""
    text = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "protocol" / "spec").glob("*.md")))
    tokens: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return tokens


def prompts(corpus: list[int], seed: int, count: int, length: int) -> list[list[int]]:
    """Return pieces of the text: all engines read the same."""
    draw = random.Random(seed)
    starts = [draw.randrange(len(corpus) - length) for _ in range(count)]
    return [corpus[start : start + length] for start in starts]


def measure(
    process: Process, corpus: list[int], seed: int, clock: str
) -> tuple[dict[int, float], float, list[Any]]:
    """Return tokens a second at each batch size, ms to the first token of a long prompt, and the answers."""
    rates, answers = {}, []
    for batch in BATCHES:
        given = prompts(corpus, seed + batch, batch, PROMPT_TOKENS)
        first = process.ask({"prompts": given, "count": 1})
        whole = process.ask({"prompts": given, "count": COUNT})
        rates[batch] = batch * (COUNT - 1) / (whole[clock] - first[clock])
        answers.append(whole["tokens"])
    long = process.ask({"prompts": prompts(corpus, seed, 1, LONG_PROMPT_TOKENS), "count": 1})
    return rates, long[clock] * 1000, answers


def agreement(ours: list[Any], theirs: list[Any]) -> float:
    """Return the share of greedy tokens that are equal up to each answer's first difference."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    equal = 0
    for a, b in pairs:
        equal += next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return equal / sum(len(a) for a, _ in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="the folder that peers/install made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu_s", "wall_s"), default="cpu_s")
    parser.add_argument("--only", default="", help="names of engines, with commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = Report(f"engines, bf16, {options.threads} thread(s), {options.clock}")
    store = ModelStore(Path(sys.prefix) / "share" / "models")
    folder = store.find(MODEL).folder
    corpus = read_corpus(folder)
    chosen = arms(options.peers, folder, options.threads, set(filter(None, options.only.split(","))))
    samples = {arm.name: Samples() for arm in chosen}
    shares: dict[str, list[float]] = {arm.name: [] for arm in chosen[1:]}
    with ExitStack() as stack:
        live = {arm.name: stack.enter_context(running(arm, options.peers / f"{arm.name}.log")) for arm in chosen}
        for name, process in live.items():
            measure(process, corpus, 0, options.clock)
            print(f"{name}: warm", file=sys.stderr)
        for number in range(options.rounds):
            order = list(live)
            random.Random(number).shuffle(order)
            told = {}
            for name in order:
                rates, first_ms, told[name] = measure(live[name], corpus, 1000 * (number + 1), options.clock)
                for batch, rate in rates.items():
                    samples[name].rates.setdefault(batch, []).append(rate)
                samples[name].first_ms.append(first_ms)
            for name, list_ in shares.items():
                list_.append(agreement(told[chosen[0].name], told[name]))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    add_rows(report, samples, shares)
    report.print(as_json=options.json)


def add_rows(report: Report, samples: dict[str, Samples], shares: dict[str, list[float]]) -> None:
    """Add each engine's figures, and ours by theirs, taken within a round."""
    for name, its in samples.items():
        for batch, rates in its.rates.items():
            report.rows.append(Row(name=f"{name}: decode at {batch}", unit="tok/s", samples=tuple(rates)))
        report.rows.append(Row(name=f"{name}: first token of 512", unit="ms", samples=tuple(its.first_ms)))
    ours = [name for name in samples if name.startswith("souk")]
    for name, its in samples.items():
        for own_name in ours if name not in ours else ():
            own = samples[own_name]
            for batch, rates in its.rates.items():
                ratios = tuple(a / b for a, b in zip(own.rates[batch], rates, strict=True))
                report.rows.append(Row(name=f"{own_name} ÷ {name}: decode at {batch}", unit="×", samples=ratios))
            ratios = tuple(a / b for a, b in zip(own.first_ms, its.first_ms, strict=True))
            report.rows.append(Row(name=f"{own_name} ÷ {name}: time to first of 512", unit="×", samples=ratios))
        if name in shares:
            equal = statistics.median(shares[name])
            report.rows.append(Row(name=f"{name}: greedy tokens as souk's", unit="share", samples=(equal,)))


if __name__ == "__main__":
    main()
