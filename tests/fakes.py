"""Stand-ins that several rooms' tests share: an executor that follows a script, clocks in virtual time, keys."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import trio

from node.errors import ExecutionError, WorkerDiedError
from node.execution.interface import DeviceReport, Piece, Prompt, ServedModel
from node.execution.worker_state import WorkerState
from node.keystore import Ed25519Signer
from protocol.task import TOKEN_BYTES, GenerateInput, Sampling
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
    name: str = MODEL, *, context_tokens: int = 4096, tokens_per_s_milli: int = 100_000
) -> ServedModel:
    return ServedModel(
        model_id=ModelId(sha256(name.encode()).digest()),
        name=name,
        task="generate",
        dtype="fp32",
        device="cpu",
        context_tokens=context_tokens,
        tokens_per_s_milli=tokens_per_s_milli,
        memory_bytes=1 << 20,
        slots=8,
        profile="scripted; fp32",
    )


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
        task_input: GenerateInput,
        tokens_out_max: int,
        *,
        scope: bytes = b"",
    ) -> Prompt:
        await trio.sleep(self.script.prepare_s)
        if self.script.refusal is not None:
            raise self.script.refusal
        self.held.add(job_key)
        self._positions[job_key] = len(task_input.held) // TOKEN_BYTES
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
                await self._answer(prompt.job_key, script, tokens_out_max, sink)
            finally:
                self.running -= 1

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
            await sink.send(Piece(tokens=tokens, text="".join(f"w{n} " for n in tokens), finish=finish))
            self.pieces[job_key] += 1
            await trio.sleep(script.step_s)

    async def release(self, prompt: Prompt) -> None:
        self.held.discard(prompt.job_key)
