"""The loop that every engine's program shares: JSON requests on standard input, measurements on standard output.

Runs in the environments of other engines: the standard library only.
"""

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""(prompts, count) -> ``count`` greedy tokens for each prompt, all prompts at once; end tokens do not end it."""


def answer(name: str, generate: Generate) -> None:
    """Answer requests until standard input ends: how long one call took, by the clock and by the processor.

    Processor time is that of this whole process, all its threads: engines that start others are told not to.
    """
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = generate(request["prompts"], request["count"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        _say({"engine": name, "tokens": tokens, "wall_s": wall, "cpu_s": cpu})


def open_channel() -> None:
    """Keep standard output for measurements: what libraries print goes to standard error."""
    global _channel
    _channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def ready() -> None:
    """Tell that the model is loaded."""
    _say({"ready": True})


def _say(value: dict[str, object]) -> None:
    print(json.dumps(value), file=_channel, flush=True)
