"""Stand-ins that several rooms' tests share: an executor that follows a script, clocks in virtual time, keys."""

import math
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import trio
from msgspec import structs

from node.errors import ExecutionError, WorkerDiedError
from node.execution.interface import DeviceReport, Piece, Prompt, ServedModel
from node.execution.worker_state import WorkerState
from node.keystore import Ed25519Signer
from protocol.fields import Task
from protocol.task import GenerateInput, Sampling
from protocol.tasks.classify import MILLION, ClassifyInput, ClassifyOutput, ImageClass
from protocol.tasks.embed import EmbedInput, EmbedOutput
from protocol.tasks.forward import ForwardInput, split_tensors
from protocol.tasks.registry import ItemInput, ItemOutput, TaskInput
from protocol.tasks.vad import VadInput, VadOutput
from protocol.units import MS_PER_S, ModelId, UnixMs

EPOCH_MS = 1_800_000_000_000
MODEL = "tiny"


def virtual_wall_clock() -> UnixMs:
    """Return Unix time as virtual time tells it."""
    return UnixMs(EPOCH_MS + round(trio.current_time() * MS_PER_S))


def signer_of(name: str) -> Ed25519Signer:
    return Ed25519Signer(sha256(name.encode()).digest())


class CountedEntropy:
    """Different bytes at every call, the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return sha256(f"{self._seed}/{self._calls}".encode()).digest()[:count]


def worker_state(**changes: Any) -> WorkerState:
    """The worker of a CPU that serves."""
    state = WorkerState(
        device="cpu", life="serving", jail="landlock+seccomp", spare="none", deaths=0, cause=None, probe_in_s=None
    )
    return replace(state, **changes)


def served_model(
    name: str = MODEL, *, context_tokens: int = 4096, tokens_per_s_milli: int = 100_000, task: Task = "generate"
) -> ServedModel:
    return ServedModel(
        model_id=ModelId(sha256(name.encode()).digest()),
        name=name,
        task=task,
        dtype="fp32",
        device="cpu",
        context_tokens=context_tokens,
        tokens_per_s_milli=tokens_per_s_milli,
        memory_bytes=1 << 20,
        slots=8,
        profile="scripted; fp32",
    )


def scripted_outputs(task_input: ItemInput) -> list[ItemOutput]:
    """Return an answer from which one can tell its input: vectors of a text's length, windows of silence, the
    tensors themselves, and for each image the class that is its width."""
    made: list[ItemOutput]
    match task_input:
        case EmbedInput():
            sizes = [len(text) for text in task_input.texts] or [len(ids) for ids in task_input.tokens]
            made = [EmbedOutput(vector=struct.pack("<2f", size, 0.0)) for size in sizes]
        case ClassifyInput():
            found = [ImageClass(index=it.width, label="wide", probability_ppm=MILLION) for it in task_input.images]
            made = [ClassifyOutput(classes=(it,)) for it in found]
        case VadInput():
            made = [VadOutput(speech_milli=(0,)) for _ in range(task_input.units_out)]
        case ForwardInput():
            made = list(split_tensors(task_input.tensors))
    return [*made[:-1], structs.replace(made[-1], finish="stop")]


@dataclass(kw_only=True)
class Script:
    """What happens to a job: ``inf`` seconds hang."""

    prepare_s: float = 0.0
    refusal: ExecutionError | None = None
    tokens: int | None = None
    """How many the answer has; None fills what the job allows."""
    tokens_per_piece: int = 1
    first_s: float = 0.0
    step_s: float = 0.01
    dies_after: int | None = None
    """After so many pieces the worker is gone."""
    hangs_after: int | None = None
    energy_millijoules: int | None = None
    fingerprint: bytes = b""


@dataclass
class ScriptedExecutor:
    """Implements ``node.execution.interface.Executor``; jobs beyond ``slots`` wait."""

    served: tuple[ServedModel, ...] = (served_model(),)
    slots: int = 8
    script: Script = field(default_factory=Script)
    held: set[str] = field(default_factory=set)
    """Prompts that a worker keeps: a leak if it is not empty in the end."""
    running: int = 0
    running_max: int = 0
    pieces: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._free = trio.Semaphore(self.slots)
        self._positions: dict[str, int] = {}
        self._inputs: dict[str, ItemInput] = {}

    def devices(self) -> tuple[DeviceReport, ...]:
        return ()

    def workers(self) -> tuple[WorkerState, ...]:
        return (worker_state(),)

    def models(self) -> tuple[ServedModel, ...]:
        return self.served

    async def load(self, model_id: ModelId) -> ServedModel:
        return next(model for model in self.models() if model.model_id == model_id)

    async def unload(self, model_id: ModelId) -> None:
        raise ExecutionError("the scripted model stays", code="model_busy")

    async def prepare(
        self,
        job_key: str,
        model_id: ModelId,
        task_input: TaskInput,
        tokens_out_max: int,
        *,
        scope: bytes = b"",
    ) -> Prompt:
        await trio.sleep(self.script.prepare_s)
        if self.script.refusal is not None:
            raise self.script.refusal
        self.held.add(job_key)
        if not isinstance(task_input, GenerateInput):
            self._inputs[job_key] = task_input
            return Prompt(job_key=job_key, model_id=model_id, tokens_in=task_input.units_in_max)
        self._positions[job_key] = task_input.units_held
        return Prompt(job_key=job_key, model_id=model_id, tokens_in=len(task_input.prompt) // 4 + 1)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        script = self.script
        assert prompt.job_key in self.held
        self.held.remove(prompt.job_key)
        async with self._free:
            self.running += 1
            self.running_max = max(self.running_max, self.running)
            try:
                await trio.sleep(script.first_s)
                if (task_input := self._inputs.pop(prompt.job_key, None)) is not None:
                    await self._compute(prompt.job_key, task_input, sink)
                else:
                    await self._answer(prompt.job_key, script, tokens_out_max, sink)
            finally:
                self.running -= 1

    async def _compute(self, job_key: str, task_input: ItemInput, sink: trio.MemorySendChannel[Piece]) -> None:
        for output in scripted_outputs(task_input):
            if self.pieces[job_key] == self.script.dies_after:
                raise WorkerDiedError("the worker is gone", code="worker_died")
            await sink.send(Piece(finish=output.finish, result=output))
            self.pieces[job_key] += 1
            await trio.sleep(self.script.step_s)

    async def _answer(
        self, job_key: str, script: Script, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        total = tokens_out_max if script.tokens is None else min(script.tokens, tokens_out_max)
        made = 0
        while made < total:
            if self.pieces[job_key] == script.dies_after:
                raise WorkerDiedError("the worker is gone", code="worker_died")
            if self.pieces[job_key] == script.hangs_after:
                await trio.sleep(math.inf)
            first = self._positions[job_key]
            tokens = tuple(range(first + made, first + min(made + script.tokens_per_piece, total)))
            made += len(tokens)
            finish = None if made < total else ("length" if total == tokens_out_max else "stop")
            energy = None if finish is None else script.energy_millijoules
            text = "".join(f"w{n} " for n in tokens)
            fingerprint = b"" if finish is None else script.fingerprint
            piece = Piece(
                tokens=tokens, text=text, finish=finish, energy_millijoules=energy, fingerprint=fingerprint
            )
            await sink.send(piece)
            self.pieces[job_key] += 1
            await trio.sleep(script.step_s)

    async def release(self, prompt: Prompt) -> None:
        self.held.discard(prompt.job_key)
