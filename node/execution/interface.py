"""What the market asks of execution: which models are served, may this job run, run it.

``node.execution.pool`` implements it over worker processes; tests bring a scripted twin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import trio

from node.execution.worker_state import WorkerState
from protocol.fields import Dtype, Task
from protocol.task import FinishReason, GenerateInput, GenerateOutput, Sampling
from protocol.tasks.registry import ItemOutput, TaskInput, TaskOutput
from protocol.units import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """How busy a device was at the last look, and with whose processes; ``None`` where it does not tell."""

    compute_capability: str | None = None
    """Of CUDA, such as ``9.0``."""
    utilization_ratio: float | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    energy_millijoules: int | None = None
    """Its counter, since the driver was loaded."""
    foreign_processes: int | None = None
    """Of other programs than this node's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One device as found and as measured at start, with its memory and load as of the last look.

    ``None`` where the device does not tell.
    """

    kind: Literal["cuda", "cpu"]
    index: int
    name: str
    architecture: str
    """``sm_90`` for CUDA, the instruction set for a CPU."""
    memory_total_bytes: int
    memory_free_bytes: int
    dtypes: tuple[Dtype, ...]
    driver: str | None
    matmul_gflops: int | None
    """Measured at start, in the dtype that is served."""
    read_mb_per_s: int | None
    """Measured streaming read of device memory, 10⁶ bytes per second."""
    load: DeviceLoad = DeviceLoad()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that answers: at once, or as soon as it has been loaded again."""

    model_id: ModelId
    name: str
    task: Task
    dtype: Dtype
    device: str
    """``cuda:0`` or ``cpu``."""
    context_tokens: int
    """Prompt and answer together; of another task than text, the most units in of one job."""
    tokens_per_s_milli: int
    """Decode speed of one sequence, measured at start, in thousandths of a token per second; of another task than
    text, of a unit in."""
    memory_bytes: int
    """Weights and reserved KV cache."""
    slots: int
    """Sequences that decode at once; more wait."""
    profile: str
    """What ran it, for receipts: ``torch 2.13.0; cpu avx512; bf16; sdpa``."""
    cache_bytes_per_token: int = 0
    """What one token of one sequence keeps on the device."""
    fixed_bytes: int = 0
    """What a job needs there whatever its length: weights and working memory."""
    is_context_cut: bool = False
    """Its context is shorter than model and configuration allow: the device has no room for more now."""
    lacks: Literal["memory", "jobs"] | None = None
    """Why it cannot be loaded now: ``memory`` that others hold, or running ``jobs`` of other models."""
    is_loaded: bool = True
    """Whether it lies on its device now; the next job for it loads it otherwise."""
    tokens_held: int = 0
    """What the jobs that answer now have in its cache, prompts included; room is for ``slots`` whole contexts."""
    delivered_tokens_per_s_milli: int | None = None
    """What jobs really got, to be held against ``tokens_per_s_milli``; ``None`` before the first one ended."""

    def job_bytes(self, tokens: int) -> int:
        """Return what a job of so many tokens, prompt and answer together, takes of the device."""
        return self.fixed_bytes + self.cache_bytes_per_token * min(tokens, self.context_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An input that a worker has rendered and tokenised and now holds; at most until the job ends."""

    job_key: str
    model_id: ModelId
    tokens_in: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one engine step gave one job. Pieces without text are sent too: their tokens are paid for."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    finish: FinishReason | None
    result: ItemOutput | None = None
    """Of another task than text: one output frame's worth, and nothing beside it."""
    energy_millijoules: int | None = None
    """On the last piece: what the job took of its device's energy, ``None`` where that is unknown."""
    fingerprint: bytes = b""
    """On the last piece of a text: what ``Scorer.score`` can compare with later, of its first 2,048 tokens; empty
    for a shorter one than 32, and where the engine does not show its states."""

    @property
    def output(self) -> TaskOutput:
        """The piece as an output frame says it."""
        if self.result is not None:
            return self.result
        return GenerateOutput(tokens=self.tokens, text=self.text, finish=self.finish)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An answer as this node's own copy of the model sees it, token by token."""

    margins: tuple[float, ...]
    """How far each token is behind the one that would be chosen here with the same noise, 0 to 5."""
    logprobs: tuple[float, ...]
    fingerprint: bytes
    """Of the hidden states here: 512 bytes for every 32 tokens."""
    distances: tuple[float, ...]
    """For each 32 tokens of the claimed fingerprint, its relative error; empty when none was claimed."""

    @property
    def mean_margin(self) -> float:
        """Return what a calibrated threshold is compared with."""
        return math.fsum(self.margins) / max(1, len(self.margins))

    @property
    def exact_share(self) -> float:
        """Return which part of the tokens would have been chosen here; weaker evidence than margins."""
        return sum(margin == 0 for margin in self.margins) / max(1, len(self.margins))


class Executor(Protocol):
    """Runs jobs on this node's own devices."""

    def devices(self) -> tuple[DeviceReport, ...]: ...

    def models(self) -> tuple[ServedModel, ...]: ...

    def workers(self) -> tuple[WorkerState, ...]: ...

    async def load(self, model_id: ModelId) -> ServedModel:
        """Bring a model onto a device and serve it from now on; at once if it is there.

        Models that nobody uses make room, the longest unused first; pinned ones stay.

        Raises:
            JobRefusedError: ``model_unknown``: the model store has no such model.
            ExecutionError: ``memory``: it fits no device; ``model_busy``: jobs are in the way; ``load``: its files
                are not what the engine runs. Of several devices the message has each one's reason.
            WorkerDiedError: the worker is gone; another is being started.
        """

    async def unload(self, model_id: ModelId) -> None:
        """Take a model off its devices and serve it no more, until ``load``.

        Raises:
            JobRefusedError: ``model_unknown``: it is not served.
            ExecutionError: ``model_busy``: jobs use it.
            WorkerDiedError: the worker is gone; another is being started.
        """

    async def prepare(
        self,
        job_key: str,
        model_id: ModelId,
        task_input: TaskInput,
        tokens_out_max: int,
        *,
        scope: bytes = b"",
    ) -> Prompt:
        """Render the chat template and tokenise, or check the items of another task, in the worker.

        A model that is not loaded is loaded before.

        ``scope`` names the customer: what was computed for a prompt is used again for no other one's.

        Raises:
            JobRefusedError: ``model_unknown``, ``context_exceeded`` (the message has the limit), ``input``.
            ExecutionError: as ``load``.
            WorkerDiedError: the worker is gone; another is being started.
        """

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        """Run a prepared job to its end and send every piece; the last one carries ``finish``.

        ``sink`` needs room for ``tokens_out_max + 1`` pieces: a reader that is slow never stops other jobs.
        Cancelling frees the slot in the worker.

        Raises: WorkerDiedError, ExecutionError.
        """

    async def release(self, prompt: Prompt) -> None:
        """Forget a prepared prompt that will not run; does nothing for one that ran. Never raises."""


class Scorer(Protocol):
    """Re-checks answers with this node's own copies of models."""

    async def score(
        self,
        model_id: ModelId,
        task_input: GenerateInput,
        answer: Sequence[int],
        sampling: Sampling,
        *,
        fingerprint: bytes = b"",
    ) -> Score:
        """Re-check an answer by one teacher-forced pass, with the time that jobs leave.

        ``fingerprint`` is what the provider claims for it, empty when nothing is to be compared.

        Raises:
            JobRefusedError: as ``prepare``; ``input`` also when answer or fingerprint cannot be this model's.
            WorkerDiedError: the worker is gone; another is being started.
        """
