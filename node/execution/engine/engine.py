"""Continuous batching: every step is one forward pass over all decoding sequences and some prompt chunks.

Synchronous and single-threaded. Text, stop strings and processes are other modules' business.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from node.execution.engine.attention import StepAttention
from node.execution.engine.fingerprint import marks
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama
from node.execution.engine.pace import INTER_TOKEN_S, PrefillPace
from node.execution.engine.sampling import choose
from node.execution.engine.scheduler import Plan, Scheduler, Sequence
from protocol.task import FinishReason


@dataclass(frozen=True, slots=True)
class Chosen:
    """One new token of one request; ``finish`` is set on its last."""

    request: int
    token: int
    finish: FinishReason | None
    mark: bytes = b""
    """Of the hidden states that predict it (``fingerprint.py``); empty where the engine does not show them."""


class Decoder(Protocol):
    """Another way to compute a step that reads no prompts."""

    def run(self, decodes: Items[Sequence]) -> Tensor | None:
        """Return the last hidden states (N, D); ``None``, with nothing done, for a step that it does not take."""


class Engine:
    """Runs the sequences of one model."""

    def __init__(
        self,
        model: Llama,
        *,
        slots: int,
        context_tokens: int,
        prefill_tokens: int,
        inter_token_s: float = INTER_TOKEN_S,
    ) -> None:
        """``prefill_tokens`` bounds a pass; beside running answers it reads what ``inter_token_s`` leaves."""
        self._model = model
        self._cache = KvCache(
            model.shape,
            slots=slots,
            context_tokens=context_tokens,
            dtype=model.dtype,
            device=model.device,
            # Who reads the weights as they lie reads the cache so, too.
            is_aligned=model.plain_layers,
        )
        self._pace = PrefillPace(tokens_max=prefill_tokens, inter_token_s=inter_token_s)
        self._scheduler = Scheduler(slots=slots, pace=self._pace)
        self._decoder: Decoder | None = None
        self._last_end: float | None = None
        """When the last pass ended, if answers run since: they have waited from then."""

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together, of each sequence."""
        return self._cache.context_tokens

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._scheduler.running)

    @property
    def reused_tokens(self) -> int:
        """Prompt tokens that were found in the cache since the start."""
        return self._scheduler.reused_tokens

    def decode_by(self, make: Callable[[Llama, KvCache], Decoder]) -> None:
        """Let what ``make`` returns decode wherever no prompt is read beside; nothing may run yet."""
        assert self.idle
        with torch.inference_mode():
            self._decoder = make(self._model, self._cache)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence whose whole answer fits its slot; the caller has checked that it does."""
        assert sequence.tokens and sequence.tokens_out_max > 0
        assert len(sequence.tokens) + sequence.tokens_out_max <= self._cache.context_tokens
        self._scheduler.add(sequence)

    def cancel(self, request: int) -> None:
        """Forget ``request`` and free its slot; does nothing when it is unknown."""
        if move := self._scheduler.remove(request):
            with torch.inference_mode():
                self._cache.move(move)

    def step(self) -> list[Chosen]:
        """Run one pass and return the tokens that it chose: none while prompts are only being read."""
        plan = self._scheduler.plan()
        if not plan.decodes and not plan.chunks:
            return []
        began = perf_counter()
        with torch.inference_mode():
            for move in plan.moves:
                self._cache.move(move)
            tokens = self._forward(plan)
            self._note(plan, began)
            chosen = []
            for sequence, token, mark in tokens:
                sequence.tokens.append(token)
                finish = finish_of(sequence, token)
                chosen.append(Chosen(sequence.request, token, finish, mark))
                if finish:
                    self.cancel(sequence.request)
        return chosen

    def _note(self, plan: Plan, began: float) -> None:
        """Let the pace learn from a pass that has ended."""
        if self._model.device.type == "cuda":
            # Where nothing was chosen, nothing has waited for the device yet.
            torch.cuda.synchronize(self._model.device)
        now = perf_counter()
        # Not from where this pass began: the answers waited for other models of this worker, too.
        since = began if self._last_end is None or not plan.decodes else self._last_end
        self._pace.note(len(plan.decodes), sum(tokens for _, tokens in plan.chunks), now - since)
        self._last_end = now

    def _forward(self, plan: Plan) -> list[tuple[Sequence, int, bytes]]:
        decoder = self._decoder
        if decoder is not None and not plan.chunks and (hidden := decoder.run(plan.decodes)) is not None:
            return self._chosen([sequence for sequence, _ in _advance(plan)], hidden)
        model, device = self._model, self._model.device
        tokens = [sequence.tokens[-1] for sequence in plan.decodes]
        positions = [sequence.cached for sequence in plan.decodes]
        for sequence, count in plan.chunks:
            tokens += sequence.tokens[sequence.cached : sequence.cached + count]
            positions += range(sequence.cached, sequence.cached + count)
        attention = StepAttention(plan, self._cache, device)
        hidden = model.forward(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attention.attend
        )
        answering = _advance(plan)
        if not answering:
            return []
        return self._chosen([sequence for sequence, _ in answering], hidden[[row for _, row in answering]])

    def _chosen(self, sequences: list[Sequence], hidden: Tensor) -> list[tuple[Sequence, int, bytes]]:
        """Choose each sequence's next token by its row; tokens come from the device together, and so do marks."""
        samplings = [sequence.sampling for sequence in sequences]
        positions = [sequence.position for sequence in sequences]
        tokens = choose(self._model.logits(hidden), samplings, positions)
        return list(zip(sequences, tokens, marks(hidden), strict=True))


def _advance(plan: Plan) -> list[tuple[Sequence, int]]:
    """Note what is cached now; return who gets a token, and the row of the pass that predicts it."""
    answering, row = [], 0
    for sequence in plan.decodes:
        sequence.cached += 1
        answering.append((sequence, row))
        row += 1
    for sequence, count in plan.chunks:
        sequence.cached += count
        row += count
        if not sequence.prefilling:
            answering.append((sequence, row - 1))
    return answering


def finish_of(sequence: Sequence, token: int) -> FinishReason | None:
    """Return why ``sequence`` ends with ``token``, ``None`` when it goes on."""
    if token in sequence.stop_tokens:
        return "stop"
    return "length" if sequence.answer_tokens >= sequence.tokens_out_max else None
