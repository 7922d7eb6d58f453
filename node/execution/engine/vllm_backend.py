"""Models that vLLM computes, such as those that need several cards: its server behind our engine's interface.

What ends an answer is decided here as everywhere; vLLM is told the same, so that it computes no token too many.
Its sampler is not spec 04's: nobody else can repeat a sampled answer, and its profile says so. Decision 0016.
Tensor parallelism: not run on a GPU yet.
"""

import queue
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from node.errors import ExecutionError
from node.execution.engine.engine import Chosen, finish_of
from node.execution.engine.scheduler import Sequence
from node.execution.engine.vllm_server import DIED, Stream, VllmServer, VllmSettings, start_vllm
from node.execution.frames import Load, VllmUse
from node.execution.memory_plan import kv_bytes_per_token
from node.execution.shape import DecoderShape

# It shares out its cache in blocks, of up to so many tokens.
_BLOCK_TOKENS: Final = 128
# So that what is asked of the worker meanwhile waits no longer than for a pass of our own engine.
_STEP_S: Final = 0.02
# Its cache is given in bytes; this is only what it checks to be free when it starts.
_FREE_SHARE: Final = 0.95
_SILENCE_S_MAX: Final = 60.0
_SEED_END: Final = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmModel:
    """As much of the model as is known on this side of the socket."""

    shape: DecoderShape
    dtype: torch.dtype


@dataclass(slots=True)
class _Answer:
    """A sequence with what has arrived for it and was not given out yet."""

    sequence: Sequence
    stream: Stream
    tokens: deque[int] = field(default_factory=deque)


class VllmEngine:
    """Runs the sequences of one model in a server."""

    def __init__(self, server: VllmServer, *, slots: int, context_tokens: int) -> None:
        self._server, self._slots, self._context_tokens = server, slots, context_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, _Answer] = {}
        self._heard_at = 0.0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together, of each sequence."""
        return self._context_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that its whole answer fits the context."""
        assert sequence.tokens and sequence.tokens_out_max > 0
        assert len(sequence.tokens) + sequence.tokens_out_max <= self._context_tokens
        self._waiting.append(sequence)

    def cancel(self, request: int) -> None:
        """Forget ``request`` and hang up on the server; does nothing when it is unknown."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request != request)
        if answer := self._running.pop(request, None):
            answer.stream.close()

    def step(self) -> list[Chosen]:
        """Return at most one token of each answer, after waiting a moment for the first.

        Raises:
            ExecutionError: ``worker_died`` or ``worker_hung``: the server has ended, or has no life in it.
        """
        self._seat()
        self._take()
        chosen = []
        for answer in [answer for answer in self._running.values() if answer.tokens]:
            sequence, token = answer.sequence, answer.tokens.popleft()
            sequence.cached = len(sequence.tokens)
            sequence.tokens.append(token)
            finish = finish_of(sequence, token)
            chosen.append(Chosen(sequence.request, token, finish))
            if finish:
                self.cancel(sequence.request)
        return chosen

    def _seat(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            sequence = self._waiting.popleft()
            if not self._running:
                self._heard_at = time.monotonic()
            self._running[sequence.request] = _Answer(sequence, self._server.ask(_wanted(sequence)))

    def _take(self) -> None:
        """Sort what has arrived to its answers; wait for something unless there is something already."""
        has_some = any(answer.tokens for answer in self._running.values())
        try:
            self._sort(*self._server.arrived.get(timeout=0.0 if has_some else _STEP_S))
            while True:
                self._sort(*self._server.arrived.get_nowait())
        except queue.Empty:
            pass
        if self._running and time.monotonic() - self._heard_at > _SILENCE_S_MAX:
            raise ExecutionError(f"vLLM's server said nothing for {_SILENCE_S_MAX:.0f} s", code="worker_hung")

    def _sort(self, stream: Stream, arrived: list[int] | str) -> None:
        self._heard_at = time.monotonic()
        answer = next((answer for answer in self._running.values() if answer.stream is stream), None)
        if answer is None:
            return  # cancelled a moment ago
        if isinstance(arrived, list):
            answer.tokens += arrived
        elif not answer.tokens or not _is_whole(answer):
            raise ExecutionError(f"vLLM's server failed: {arrived}", code=DIED)


def _is_whole(answer: _Answer) -> bool:
    """Return whether nothing has to follow what has arrived."""
    sequence, tokens = answer.sequence, answer.tokens
    return tokens[-1] in sequence.stop_tokens or sequence.answer_tokens + len(tokens) >= sequence.tokens_out_max


def _wanted(sequence: Sequence) -> dict[str, object]:
    sampling = sequence.sampling
    return {
        "prompt": sequence.tokens,
        "max_tokens": sequence.tokens_out_max,
        "temperature": sampling.temperature_milli / 1000,
        "top_p": sampling.top_p_milli / 1000,
        # An answer that goes on must not be drawn with the numbers of its beginning.
        "seed": (sampling.seed + sequence.first_position) % _SEED_END,
        "stop_token_ids": sorted(sequence.stop_tokens),
        "ignore_eos": True,
        "add_special_tokens": False,
        # A prefix in its cache is used again by the same customer only.
        "cache_salt": sequence.scope.hex() or secrets.token_hex(),
    }


def load_vllm(
    load: Load, use: VllmUse, shape: DecoderShape, *, device: torch.device, dtype: torch.dtype
) -> tuple[VllmModel, VllmServer]:
    """Start a server for the model in ``load.folder``.

    Raises:
        ModelError: it does not start; the message has its last words.
    """
    tokens = load.slots * (load.context_tokens + _BLOCK_TOKENS)
    share = None
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = free / total * _FREE_SHARE
    settings = VllmSettings(
        python=use.python,
        folder=Path(load.folder),
        dtype=load.dtype,
        slots=load.slots,
        context_tokens=load.context_tokens,
        cache_bytes=tokens * kv_bytes_per_token(shape, load.dtype) // use.cards,
        cards=use.cards,
        extra=use.arguments,
        first_card=device.index or 0,
        memory_share=share,
    )
    return VllmModel(shape=shape, dtype=dtype), start_vllm(settings)
