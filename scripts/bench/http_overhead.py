"""What the HTTP side costs: streamed tokens a second of one core, and how late the event loop is meanwhile.

The server runs in a process of its own over a market that answers as fast as it is read, a token a piece. Counted
is the processor time of that process; the wall clock has its clients in it, which share the machine. A server that
is never out of work is the worst case for the loop: a real job is bounded by its model.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Final

import psutil
import trio

from node.market.order import JobEvent, Order, Output
from scripts.bench.measure import ROOT, Report, parser_of
from tests.api.fakes import CONTRACTED, FINISHED, TOKEN, ScriptedMarket, chat_body, serve_node

TOKENS: Final = 5_000
STREAMS: Final = 4
LAG_PERIOD_S: Final = 0.002
MS: Final = 1_000


class EagerMarket(ScriptedMarket):
    """Has every token ready."""

    async def submit(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> None:
        await sink.send(CONTRACTED)
        for token in range(order.tokens_out_max):
            await sink.send(Output(tokens=(token,), text="word "))
        await sink.send(FINISHED)


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--serve", action="store_true", help="be the server that is measured; not for people")
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return
    report = Report("http_overhead")
    measure(report, options.rounds)
    report.print(as_json=options.json)


async def serve() -> None:
    """Print the port, then serve until standard input has a line; print how late the loop was."""
    async with trio.open_nursery() as nursery:
        node = await serve_node(nursery, EagerMarket())
        lags_ms: list[float] = []
        nursery.start_soon(note_lags, lags_ms)
        print(node.port, flush=True)
        while line := (await trio.to_thread.run_sync(sys.stdin.readline)).strip():
            if line == "lags":
                print(json.dumps(lags_ms), flush=True)
            lags_ms.clear()
        nursery.cancel_scope.cancel()


async def note_lags(lags_ms: list[float]) -> None:
    while True:
        due = trio.current_time() + LAG_PERIOD_S
        await trio.sleep_until(due)
        lags_ms.append((trio.current_time() - due) * MS)


def measure(report: Report, rounds: int) -> None:
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        port, process = int(server.stdout.readline()), psutil.Process(server.pid)
        rates: dict[int, list[float]] = {1: [], STREAMS: []}
        lags: dict[int, list[float]] = {1: [], STREAMS: []}
        stream(port, 1)
        for _ in range(rounds):
            for streams in rates:
                print("clear", file=server.stdin, flush=True)
                before = cpu_s(process)
                stream(port, streams)
                rates[streams].append(streams * TOKENS / (cpu_s(process) - before))
                print("lags", file=server.stdin, flush=True)
                lags[streams].append(percentile(json.loads(server.stdout.readline()), 0.99))
        server.stdin.close()
    report.settings |= {"tokens": TOKENS, "streams": STREAMS}
    for streams in rates:
        report.add(f"streamed, {streams} at once", "tokens/s of a core", rates[streams])
        report.add(f"event loop late, p99, {streams} at once", "ms", lags[streams])


def stream(port: int, streams: int) -> None:
    with ThreadPoolExecutor(streams) as threads:
        counts = list(threads.map(read_stream, [port] * streams))
    assert counts == [TOKENS + 2] * streams, counts  # and the finish, and the end mark


def read_stream(port: int) -> int:
    """Return how many events one streamed answer had."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"authorization": f"Bearer {TOKEN}"}
    body = json.dumps(chat_body(stream=True, max_tokens=TOKENS))
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return data.count(b"data: ")


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def percentile(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[min(int(len(samples) * share), len(samples) - 1)]


if __name__ == "__main__":
    main()
