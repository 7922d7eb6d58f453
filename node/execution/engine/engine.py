"""Continuous batching: every step is one forward pass over all decoding sequences and some prompt chunks.

Synchronous and single-threaded. Text, stop strings and processes are other modules' business.
"""

from dataclasses import dataclass

import torch

from node.execution.engine.attention import StepAttention
from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Llama
from node.execution.engine.sampling import choose
from node.execution.engine.scheduler import Plan, Scheduler, Sequence
from protocol.task import FinishReason


@dataclass(frozen=True, slots=True)
class Chosen:
    """One new token of one request; ``finish`` is set on its last."""

    request: int
    token: int
    finish: FinishReason | None


class Engine:
    """Runs the sequences of one model."""

    def __init__(self, model: Llama, *, slots: int, context_tokens: int, prefill_tokens: int) -> None:
        self._model = model
        self._cache = KvCache(
            model.shape, slots=slots, context_tokens=context_tokens, dtype=model.dtype, device=model.device
        )
        self._scheduler = Scheduler(slots=slots, prefill_tokens=prefill_tokens)

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

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence whose whole answer fits its slot; the caller has checked that it does."""
        assert sequence.tokens and sequence.tokens_out_max > 0
        assert len(sequence.tokens) + sequence.tokens_out_max <= self._cache.context_tokens
        self._scheduler.add(sequence)

    def cancel(self, request: int) -> None:
        """Forget ``request`` and free its slot; does nothing when it is unknown."""
        if move := self._scheduler.remove(request):
            self._cache.move(move.source, move.target, move.tokens)

    def step(self) -> list[Chosen]:
        """Run one pass and return the tokens that it chose: none while prompts are only being read."""
        plan = self._scheduler.plan()
        if not plan.decodes and not plan.chunks:
            return []
        with torch.inference_mode():
            tokens = self._forward(plan)
            chosen = []
            for sequence, token in tokens:
                sequence.tokens.append(token)
                finish = _finish(sequence, token)
                chosen.append(Chosen(sequence.request, token, finish))
                if finish:
                    self.cancel(sequence.request)
        return chosen

    def _forward(self, plan: Plan) -> list[tuple[Sequence, int]]:
        model, device = self._model, self._model.device
        tokens = [sequence.tokens[-1] for sequence in plan.decodes]
        positions = [sequence.cached for sequence in plan.decodes]
        for sequence, count in plan.chunks:
            tokens += sequence.tokens[sequence.cached : sequence.cached + count]
            positions += range(sequence.cached, sequence.cached + count)
        attention = StepAttention(plan, self._cache, model.shape, device)
        hidden = model.forward(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), attention.attend
        )
        answering = _advance(plan)
        if not answering:
            return []
        sequences = [sequence for sequence, _ in answering]
        logits = model.logits(hidden[[row for _, row in answering]])
        chosen = choose(
            logits,
            [sequence.sampling for sequence in sequences],
            [sequence.position for sequence in sequences],
        )
        return list(zip(sequences, chosen, strict=True))


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


def _finish(sequence: Sequence, token: int) -> FinishReason | None:
    if token in sequence.stop_tokens:
        return "stop"
    return "length" if sequence.answer_tokens >= sequence.tokens_out_max else None
