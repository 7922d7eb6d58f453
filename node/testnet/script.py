"""An executor that follows a script: the answer is a function of prompt and seed, computing takes virtual time.

``true_answer`` is what every provider has to deliver, whoever goes on where another one died: the checks compare
with it token by token.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import trio

from node.errors import ExecutionError, JobRefusedError, WorkerDiedError
from node.execution.interface import DeviceReport, Piece, Prompt, ServedModel
from node.execution.worker_state import WorkerState
from protocol.task import FinishReason, GenerateInput, Sampling, unpack_tokens
from protocol.tasks.registry import TaskInput
from protocol.units import ModelId

MODEL: Final = "scripted"
CONTEXT_TOKENS: Final = 1024
RESTART_S: Final = (1.0, 8.0)

MODEL_ID: Final = ModelId(sha256(MODEL.encode()).digest())


def next_token(prompt: str, seed: int, position: int, previous: int) -> int:
    """Return the one right token: a wrong token anywhere before it shows in every later one."""
    digest = sha256(f"{prompt}/{seed}/{position}/{previous}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def answer_tokens(prompt: str, seed: int) -> int:
    """Return how long the whole answer is unless the order cuts it."""
    return 1 + int.from_bytes(sha256(f"{prompt}/{seed}".encode()).digest()[:2], "big") % 160


def true_answer(prompt: str, seed: int, tokens_max: int) -> tuple[list[int], FinishReason]:
    """Return the answer that an order of ``tokens_max`` tokens has to end with."""
    whole = answer_tokens(prompt, seed)
    tokens: list[int] = []
    for position in range(min(whole, tokens_max)):
        tokens.append(next_token(prompt, seed, position, tokens[-1] if tokens else 0))
    return tokens, "stop" if whole <= tokens_max else "length"


@dataclass(frozen=True, slots=True)
class _Work:
    task_input: GenerateInput
    tokens_in: int


class ScriptedWorkers:
    """Implements ``node.execution.interface.Executor``; jobs beyond ``slots`` wait for one."""

    def __init__(
        self,
        rng: random.Random,
        *,
        slots: int,
        serves: bool,
        on_start: Callable[[str, int], None],
        on_token: Callable[[str], None],
        on_held: Callable[[int], None],
    ) -> None:
        """``on_start`` hears (job key, tokens allowed) of each job that computes, ``on_token`` each token.

        ``on_held`` hears how many jobs are in the worker whenever one more is.
        """
        self._rng = rng
        self._slots = slots
        self._serves = serves
        self._free = trio.Semaphore(slots)
        self._on_start, self._on_token, self._on_held = on_start, on_token, on_held
        self._prompts: dict[str, _Work] = {}
        self._running: dict[str, trio.CancelScope] = {}
        self._back_at = 0.0
        self.hangs = 0
        """How many of the next jobs hang in mid-answer."""

    @property
    def held(self) -> int:
        """Prompts and jobs in the worker: a leak if there are any in the end."""
        return len(self._prompts) + len(self._running)

    def die(self) -> None:
        """Lose the worker and all it holds; it is back after a while."""
        self._back_at = trio.current_time() + self._rng.uniform(*RESTART_S)
        self._prompts.clear()
        for scope in self._running.values():
            scope.cancel()

    def devices(self) -> tuple[DeviceReport, ...]:
        return ()

    def workers(self) -> tuple[WorkerState, ...]:
        return ()

    def models(self) -> tuple[ServedModel, ...]:
        if not self._serves or trio.current_time() < self._back_at:
            return ()
        return (
            ServedModel(
                model_id=MODEL_ID,
                name=MODEL,
                task="generate",
                dtype="fp32",
                device="cpu",
                context_tokens=CONTEXT_TOKENS,
                tokens_per_s_milli=100_000,
                memory_bytes=1 << 20,
                slots=self._slots,
                profile="scripted; fp32",
            ),
        )

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
        assert isinstance(task_input, GenerateInput)
        await trio.sleep(self._rng.uniform(0.001, 0.02))
        if not self.models():
            raise WorkerDiedError("the worker is being started again", code="worker_died")
        tokens_in = len(task_input.prompt) // 4 + 1 + len(unpack_tokens(task_input.held))
        if model_id != MODEL_ID or tokens_in + tokens_out_max > CONTEXT_TOKENS:
            raise JobRefusedError(f"the context has {CONTEXT_TOKENS} tokens", code="context_exceeded")
        self._prompts[job_key] = _Work(task_input, tokens_in)
        self._on_held(self.held)
        return Prompt(job_key=job_key, model_id=model_id, tokens_in=tokens_in)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, *, tokens_out_max: int, sink: trio.MemorySendChannel[Piece]
    ) -> None:
        key = prompt.job_key
        work = self._prompts.pop(key, None)
        if work is None:
            raise WorkerDiedError("the worker lost the prompt", code="worker_died")
        self._on_start(key, tokens_out_max)
        with trio.CancelScope() as scope:
            self._running[key] = scope
            try:
                async with self._free:
                    await self._compute(work, key, sampling, tokens_out_max=tokens_out_max, sink=sink)
            finally:
                del self._running[key]
        if scope.cancelled_caught:
            raise WorkerDiedError("the worker is gone", code="worker_died")

    async def _compute(
        self,
        work: _Work,
        key: str,
        sampling: Sampling,
        *,
        tokens_out_max: int,
        sink: trio.MemorySendChannel[Piece],
    ) -> None:
        prompt, seed = work.task_input.prompt, sampling.seed
        held = unpack_tokens(work.task_input.held)
        whole = answer_tokens(prompt, seed)
        end = min(len(held) + tokens_out_max, whole)
        finish: FinishReason = "stop" if end == whole else "length"
        await trio.sleep(self._rng.uniform(0.01, 0.1))
        hangs_at = None
        if self.hangs:
            self.hangs -= 1
            hangs_at = self._rng.randrange(len(held), end)
        previous, position = held[-1] if held else 0, len(held)
        while position < end:
            step = min(self._rng.randint(1, 6), end - position)
            tokens = []
            for _ in range(step):
                previous = next_token(prompt, seed, position, previous)
                tokens.append(previous)
                position += 1
                self._on_token(key)
            if hangs_at is not None and position > hangs_at:
                await trio.sleep(math.inf)
            text = "".join(f"{token:x} " for token in tokens)
            await sink.send(Piece(tokens=tuple(tokens), text=text, finish=finish if position == end else None))
            await trio.sleep(step * self._rng.uniform(0.01, 0.06))

    async def release(self, prompt: Prompt) -> None:
        self._prompts.pop(prompt.job_key, None)
