"""Decode steps as CUDA graphs: a step of a thousand small kernels is started in one call. Not run on a GPU yet.

What a step is, and how a batch is padded, is ``static_decode.py``'s business.
"""

from typing import Final

import torch
from torch import Tensor

from node.execution.engine.static_decode import DecodeStep, Program

_WARM_UP_RUNS: Final = 2
"""Before a capture, on a stream of its own: libraries allocate what they need at their first calls."""


class CudaGraphs:
    """Captures the steps of one model. They share one memory pool, for only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, step: DecodeStep) -> Program:
        inputs = torch.zeros(3, step.rows, dtype=torch.int64, device=self._device)
        # Pinned: the one copy to the device is queued and not waited for.
        staged = torch.zeros(3, step.rows, dtype=torch.int64, pin_memory=True)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's stub has none
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                step(inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = step(inputs)

        def run(given: Tensor) -> Tensor:
            # The copy before has ended: the tokens that it led to are on the host.
            staged.copy_(given)
            inputs.copy_(staged, non_blocking=True)
            graph.replay()
            return hidden

        return run
