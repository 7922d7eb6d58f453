"""How long a person waits for a command: ``souk --help``, ``souk status`` and a <TAB>, each a process of its own.

    python -m scripts.bench.cli_start [--rounds 15]

``status`` asks a server that answers at once: what is measured is the command. Wall time and
CPU time, the commands interleaved; ``python -c pass`` beside them is what an interpreter costs on this machine.
"""

import http.server
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.home import ApiInfo, Home
from scripts.bench.measure import Report, parser_of

STATUS = b'{"schema":1,"name":"n","ready":true,"role":"client","peer_id":"12D3","version":"0","uptime_s":1}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(STATUS)))
        self.end_headers()
        self.wfile.write(STATUS)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the table is the output."""


@contextmanager
def serving(home: Home) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    home.ensure_token()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    home.write_api(ApiInfo(url=url, token_file="", pid=os.getpid(), peer_id="12D3", addresses=()))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def measure(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Return (wall, CPU) in milliseconds of one run."""
    before, began = _cpu_s_of_children(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=environ)
    wall_s, cpu_s = time.perf_counter() - began, _cpu_s_of_children() - before
    return wall_s * 1000, cpu_s * 1000


def _cpu_s_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = parser_of(__doc__, rounds=15)
    arguments = parser.parse_args()
    souk = [sys.executable, "-m", "node.cli"]
    commands = {
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "souk --help": ([*souk, "--help"], {}),
        "souk status": ([*souk, "status"], {}),
        "souk s<TAB>": (souk, {"_SOUK_COMPLETE": "bash_complete", "COMP_WORDS": "souk s", "COMP_CWORD": "1"}),
    }
    report = Report(benchmark="cli_start")
    walls: dict[str, list[float]] = {name: [] for name in commands}
    cpus: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="souk-bench-") as folder, serving(Home(Path(folder))):
        for _ in range(arguments.rounds):
            for name, (command, extra) in commands.items():
                wall, cpu = measure(command, {**os.environ, "SOUK_HOME": folder, **extra})
                walls[name].append(wall)
                cpus[name].append(cpu)
    for name in commands:
        report.add(f"{name}, wall", "ms", walls[name])
        report.add(f"{name}, CPU", "ms", cpus[name])
    report.print(as_json=arguments.json)


if __name__ == "__main__":
    main()
