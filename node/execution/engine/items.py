"""Jobs that are a number of items (texts, images, audio, tensors): queued, batched fairly, answered in order.

What an item is and how it is computed is its network's: ``encoder.py``, ``classifier.py``, ``vad.py``; any network
runs bare tensors as well. Each step takes items of several jobs in turn up to a budget, so that one job of two
thousand texts delays nobody for longer than a step.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from msgspec.structs import replace

from node.errors import JobRefusedError
from node.execution.engine.tensors import TensorItem, outputs_of, tensor_item
from node.execution.frames import Failed, PrepareItems, StepPiece
from protocol.fields import Task
from protocol.task import GenerateInput
from protocol.tasks.forward import ForwardInput
from protocol.tasks.registry import (
    ItemInput,
    ItemOutput,
    decode_task_input_untrusted,
    encode_task_output,
)

_MEASURE_S: Final = 0.3
_NOT_FINITE: Final = "the model's result is no number: its weights are damaged, or the input is beyond them"


class Item(Protocol):
    """One piece of work, ready to compute."""

    @property
    def weight(self) -> int:
        """Its share of a step's budget; as much as the whole budget runs alone."""


class Network(Protocol):
    """A loaded model of one task. It is given items of one kind at a time."""

    @property
    def task(self) -> Task: ...

    @property
    def budget(self) -> int:
        """What the items of one step may weigh together."""

    def items(self, task_input: ItemInput) -> tuple[int, list[Item]]:
        """Return the units in, and the items. Runs in another thread than the rest: it only reads.

        Raises:
            JobRefusedError: ``input``, or ``context_exceeded`` with the limit in the message.
        """

    def compute(self, items: Sequence[Item]) -> Sequence[ItemOutput | None]:
        """Return one output for each item, without ``finish``; None where the result is no number."""

    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the bare network on tensors that ``check`` has let through."""

    def check(self, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Return the shapes (float32) that ``forward`` gives for these tensors, which lie on the CPU.

        Raises:
            JobRefusedError: ``input``: these are not the tensors of this architecture.
        """

    def example(self) -> tuple[int, list[Item]]:
        """Return typical units in and items, to measure with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldItems:
    """A checked input on its way to its queue."""

    request: int
    model: bytes
    task: Task
    items: list[Item]
    units_in: int
    """As ``accept`` will say."""


@dataclass(slots=True, kw_only=True)
class _Job:
    request: int
    task: Task
    waiting: deque[Item]


class ServedItems:
    """A model whose jobs are items. ``prepare`` may run in another thread than the rest: it only reads."""

    def __init__(self, network: Network, *, device: torch.device, units_max: int) -> None:
        self._network, self._device = network, device
        self._units_max = units_max
        self._jobs: deque[_Job] = deque()

    @property
    def idle(self) -> bool:
        return not self._jobs

    @property
    def has_jobs(self) -> bool:
        return not self.idle

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def prepare(self, frame: PrepareItems) -> HeldItems:
        """Check an input and cut it into items.

        Raises:
            JobRefusedError: ``input``, or ``context_exceeded`` with the limit in the message.
        """
        task_input = decode_task_input_untrusted(frame.task, frame.data)
        assert not isinstance(task_input, GenerateInput)
        items: list[Item]
        if isinstance(task_input, ForwardInput):
            units, items = task_input.units_in_max, [tensor_item(self._network, task_input)]
        else:
            if frame.task != self._network.task:
                raise JobRefusedError(f"this model does {self._network.task}, not {frame.task}", code="input")
            units, items = self._network.items(task_input)
        if units > self._units_max:
            raise JobRefusedError(
                f"the job has {units} units, this model is served with at most {self._units_max} for each job",
                code="context_exceeded",
            )
        return HeldItems(request=frame.request, model=frame.model, task=frame.task, items=items, units_in=units)

    def start(self, held: HeldItems) -> None:
        """Queue a held job behind those that wait."""
        self._jobs.append(_Job(request=held.request, task=held.task, waiting=deque(held.items)))

    def cancel(self, request: int) -> None:
        """Forget ``request``; does nothing when it is unknown."""
        self._jobs = deque(job for job in self._jobs if job.request != request)

    def step(self) -> list[StepPiece | Failed]:
        """Compute some items and return what they gave each job; one whose results are no numbers fails alone."""
        batch = self._next_batch()
        with torch.inference_mode():
            outputs = self._outputs(batch)
        pieces: list[StepPiece | Failed] = []
        failed: set[int] = set()
        for place, (job, output) in enumerate(outputs):
            if job.request in failed:
                continue
            if output is None:
                failed.add(job.request)
                self.cancel(job.request)
                pieces.append(Failed(request=job.request, code="not_finite", message=_NOT_FINITE))
                continue
            is_last = not job.waiting and all(later is not job for later, _ in outputs[place + 1 :])
            pieces.append(_piece(job, replace(output, finish="stop") if is_last else output))
        return pieces

    def measure(self) -> int:
        """Return thousandths of units in per second; nothing else may run."""
        assert self.idle
        units, items = self._network.example()
        with torch.inference_mode():
            self._network.compute(items)
            runs, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _MEASURE_S or not runs:
                self._network.compute(items)
                runs += 1
        return max(1, round(runs * units * 1000 / elapsed))

    def _outputs(self, batch: list[tuple[_Job, Item]]) -> list[tuple[_Job, ItemOutput | None]]:
        job, first = batch[0]
        if isinstance(first, TensorItem):
            assert len(batch) == 1
            return [(job, output) for output in outputs_of(self._network, first, self._device)]
        computed = self._network.compute([item for _, item in batch])
        return [(job, output) for (job, _), output in zip(batch, computed, strict=True)]

    def _next_batch(self) -> list[tuple[_Job, Item]]:
        """Take items of all jobs in turn; the first one whatever it weighs."""
        batch: list[tuple[_Job, Item]] = []
        left = self._network.budget
        while self._jobs:
            job = self._jobs[0]
            weight = min(job.waiting[0].weight, self._network.budget)
            if batch and weight > left:
                break
            self._jobs.popleft()
            batch.append((job, job.waiting.popleft()))
            left -= weight
            if job.waiting:
                self._jobs.append(job)
        return batch


def _piece(job: _Job, output: ItemOutput) -> StepPiece:
    return StepPiece(
        request=job.request,
        tokens=(),
        text="",
        finish=output.finish,
        task=job.task,
        result=encode_task_output(output),
    )
