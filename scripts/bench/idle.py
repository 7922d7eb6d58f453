"""What a node costs that has nothing to do: processor time, wake-ups and memory of daemons and workers."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psutil

from scripts.bench.local_net import LocalNet, add_net_option, local_net
from scripts.bench.measure import Report, parser_of

# Joining, measuring and the first adverts are over by then.
SETTLE_S: Final = 5.0
WINDOW_S: Final = 10.0
MIB: Final = 1 << 20
WORKER: Final = "node.execution.engine.worker_main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process had used up at one moment."""

    cpu_s: float
    wake_ups: int
    resident_mib: float


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    add_net_option(parser)
    options = parser.parse_args()
    report = Report("idle")
    with local_net(options.dir) as net:
        measure(report, net, options.rounds)
    report.print(as_json=options.json)


def measure(report: Report, net: LocalNet, rounds: int) -> None:
    processes = find_processes(net)
    time.sleep(SETTLE_S)
    cpu: dict[str, list[float]] = {name: [] for name in processes}
    wake_ups: dict[str, list[float]] = {name: [] for name in processes}
    before, began = read_all(processes), time.monotonic()
    for _ in range(rounds):
        time.sleep(WINDOW_S)
        after, now = read_all(processes), time.monotonic()
        for name in processes:
            cpu[name].append(100 * (after[name].cpu_s - before[name].cpu_s) / (now - began))
            wake_ups[name].append((after[name].wake_ups - before[name].wake_ups) / (now - began))
        before, began = after, now
    report.settings |= {"window_s": WINDOW_S, "nodes": len(net.network.nodes)}
    for name in processes:
        report.add(f"processor, {name}", "% of a core", cpu[name])
    for name in processes:
        report.add(f"wake-ups, {name}", "per s", wake_ups[name])
    for name in processes:
        report.add(f"resident memory, {name}", "MiB", [before[name].resident_mib])


def find_processes(net: LocalNet) -> dict[str, psutil.Process]:
    """Return the daemons of a client and of the provider, and the provider's worker."""
    provider = psutil.Process(net.provider_node.pid)
    # Whatever stands between the two does nothing while a worker lives; a spare is younger than who serves.
    found = [it for it in provider.children(recursive=True) if it.name() != "bwrap"]
    worker = min((it for it in found if WORKER in it.cmdline()), key=lambda it: it.create_time())
    return {
        "client daemon": psutil.Process(net.network.nodes[-1].pid),
        "provider daemon": provider,
        "provider worker": worker,
    }


def read_all(processes: Mapping[str, psutil.Process]) -> dict[str, Usage]:
    return {name: read_usage(process) for name, process in processes.items()}


def read_usage(process: psutil.Process) -> Usage:
    with process.oneshot():
        times = process.cpu_times()
        return Usage(
            cpu_s=times.user + times.system,
            wake_ups=process.num_ctx_switches().voluntary,
            resident_mib=process.memory_info().rss / MIB,
        )


if __name__ == "__main__":
    main()
