"""Prints one table of the benchmarks' JSON lines on standard input, as ``scripts/bench/run`` collects them."""

import json
import sys

from scripts.bench.measure import format_reports


def main() -> None:
    print(format_reports([json.loads(line) for line in sys.stdin if line.strip()]))


if __name__ == "__main__":
    main()
