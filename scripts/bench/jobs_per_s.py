"""How many whole jobs a second: contract, one token, receipt, closing; one after the other, and eight at once.

One token, so that the model's share is one short prefill: what is left is the market.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from node.cli.client import Daemon
from scripts.bench.local_net import FAST, LOCAL, LocalNet, Question, add_net_option, local_net
from scripts.bench.measure import Report, parser_of

QUESTION: Final = Question(text="Say yes.", tokens_max=1)
SEQUENTIAL_JOBS: Final = 12
CONCURRENT: Final = 8
CONCURRENT_JOBS: Final = 32


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    add_net_option(parser)
    options = parser.parse_args()
    report = Report("jobs/s")
    with local_net(options.dir) as net:
        measure(report, net, options.rounds)
    report.print(as_json=options.json)


def measure(report: Report, net: LocalNet, rounds: int) -> None:
    arms = {"through a peer": (net.buyer, FAST), "on the provider": (net.provider, LOCAL)}
    samples: dict[tuple[str, int], list[float]] = {}
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for daemon, souk in arms.values():
            run_jobs(pool, net.model, daemon, souk, concurrent=CONCURRENT)
        for _ in range(rounds):
            for name, (daemon, souk) in arms.items():
                for concurrent in (1, CONCURRENT):
                    rate = run_jobs(pool, net.model, daemon, souk, concurrent=concurrent)
                    samples.setdefault((name, concurrent), []).append(rate)
    report.settings |= {"model": net.model, "tokens_max": QUESTION.tokens_max}
    for (name, concurrent), rates in samples.items():
        how = "sequential" if concurrent == 1 else f"{concurrent} at once"
        report.add(f"{name}, {how}", "jobs/s", rates)


def run_jobs(
    pool: ThreadPoolExecutor, model: str, daemon: Daemon, souk: Mapping[str, object], *, concurrent: int
) -> float:
    """Return jobs per second of one batch; any job that fails ends the benchmark."""
    jobs = SEQUENTIAL_JOBS if concurrent == 1 else CONCURRENT_JOBS
    body = QUESTION.body(model, souk)

    def run_one(_number: int) -> None:
        answer = daemon.request("POST", "/v1/chat/completions", body)
        assert answer["usage"]["completion_tokens"] == 1

    began = time.perf_counter()
    if concurrent == 1:
        for number in range(jobs):
            run_one(number)
    else:
        list(pool.map(run_one, range(jobs)))
    return jobs / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
