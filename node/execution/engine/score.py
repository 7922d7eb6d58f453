"""Teacher-forced re-checking: would this model have chosen these tokens?

One prefill pass over prompt and answer gives the logits of every answer token. With the noise of (seed, position)
added as the sampler adds it, a token's margin is how far it is behind the best one: 0 when the same token would be
chosen here. Honest providers round differently and stay close to 0; fewer bits, dropped layers and other prompts
do not (Token-DiFR, arXiv 2511.20621, is the same idea). What is too far is calibrated for each model and dtype:
``node.execution.calibration``.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from node.execution.engine.chunk_attention import chunk_attention
from node.execution.engine.fingerprint import GROUP_BYTES, GROUP_TOKENS, Fingerprinter, distance, marks
from node.execution.engine.llama import Llama
from node.execution.engine.sampling import gumbel_noise
from node.execution.memory_plan import SCORE_ROWS
from protocol.task import Sampling

MARGIN_MAX: Final = 5.0
"""A single wild token says no more than this."""
# Of a nucleus: an honest bfloat16 run has moved mass over its border by less than this.
_BORDER: Final = 0.05
_LIKELIEST: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """An answer to check. ``first_position`` counts answer tokens that are in the prompt already."""

    request: int
    prompt: list[int]
    answer: list[int]
    sampling: Sampling
    first_position: int = 0
    fingerprint: bytes = b""
    """Claimed for this answer; empty when there is none to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """For each answer token its margin and log probability here, and this model's own fingerprint."""

    request: int
    margins: list[float]
    logprobs: list[float]
    fingerprint: bytes
    distances: list[float]


class Reader(Protocol):
    """Reads one text in pieces, each after what was read before."""

    def read(self, tokens: list[int]) -> Tensor:
        """Return the last hidden states (n, D) of the next n tokens."""

    def logits(self, first: int, last: int) -> Tensor:
        """Return (last - first, V) float32: rows of what ``read`` returned last."""


class LlamaReader:
    """Reads with keys and values of its own, so that scoring takes no slot from a job."""

    def __init__(self, model: Llama, tokens_max: int) -> None:
        self._model, self._count = model, 0
        self._hidden = torch.empty(0)
        shape = model.shape
        size = (2, shape.layers, shape.kv_heads, tokens_max, shape.head_size)
        self._keys, self._values = torch.empty(size, dtype=model.dtype, device=model.device)

    def read(self, tokens: list[int]) -> Tensor:
        device, start, end = self._model.device, self._count, self._count + len(tokens)
        positions = torch.arange(start, end, device=device)
        attention = chunk_attention(start, end, device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[:, start:end], values[:, start:end] = k.transpose(0, 1), v.transpose(0, 1)
            return attention.attend(q, keys[:, :end], values[:, :end])

        self._count = end
        self._hidden = self._model.forward(torch.tensor(tokens, device=device), positions, attend)
        return self._hidden

    def logits(self, first: int, last: int) -> Tensor:
        return self._model.logits(self._hidden[first:last])


@dataclass(slots=True, kw_only=True)
class Scoring:
    """One check on its way through the model."""

    task: ScoreTask
    reader: Reader
    _cached: int = 0
    _margins: list[float] = field(default_factory=list)
    _logprobs: list[float] = field(default_factory=list)
    _hidden: list[Tensor] = field(default_factory=list)
    """States of the claimed fingerprint's tokens, of which a long answer has more."""
    _fingerprinter: Fingerprinter = field(default_factory=Fingerprinter)

    @property
    def done(self) -> bool:
        return len(self._margins) == len(self.task.answer)

    def advance(self, tokens_max: int) -> None:
        """Read at most ``tokens_max`` more tokens, and judge those answer tokens that they predict."""
        task = self.task
        # The last token predicts nothing that was claimed.
        whole = len(task.prompt) + len(task.answer) - 1
        first, last = self._cached, min(self._cached + tokens_max, whole)
        window = itertools.islice(itertools.chain(task.prompt, task.answer), first, last)
        with torch.inference_mode():
            hidden = self.reader.read(list(window))
            self._cached = last
            # The row before a token predicts it.
            self._judge(hidden, min(len(hidden), max(0, len(task.prompt) - 1 - first)))

    def _judge(self, hidden: Tensor, first: int) -> None:
        task, predicting = self.task, hidden[first:]
        self._fingerprinter.add(marks(predicting))
        compared = len(task.fingerprint) // GROUP_BYTES * GROUP_TOKENS
        if (missing := compared - sum(map(len, self._hidden))) > 0:
            self._hidden.append(predicting[:missing])
        for start in range(first, len(hidden), SCORE_ROWS):
            end, at = min(start + SCORE_ROWS, len(hidden)), len(self._margins)
            claimed = task.answer[at : at + end - start]
            margins, logprobs = judge(
                self.reader.logits(start, end), claimed, task.sampling, first_position=task.first_position + at
            )
            self._margins += margins
            self._logprobs += logprobs

    def verdict(self) -> Verdict:
        """Return what was found, once ``done``."""
        assert self.done
        claimed = self.task.fingerprint
        return Verdict(
            request=self.task.request,
            margins=self._margins,
            logprobs=self._logprobs,
            fingerprint=self._fingerprinter.found(),
            distances=distance(claimed, torch.cat(self._hidden)) if claimed else [],
        )


@dataclass(slots=True, kw_only=True)
class Scores:
    """The checks that wait for one model, read one after the other with what time the jobs leave."""

    new_reader: Callable[[int], Reader]
    """Takes the tokens that it will read; called when a check begins, so that one at a time holds memory."""
    tokens_alone: int
    """Of one pass when no job runs."""
    tokens_beside: int
    """Of one pass between two passes of running jobs."""
    waiting: deque[ScoreTask] = field(default_factory=deque)
    _current: Scoring | None = None

    @property
    def idle(self) -> bool:
        return not self.waiting

    def cancel(self, request: int) -> None:
        """Forget a check; does nothing when it is unknown."""
        self.waiting = deque(task for task in self.waiting if task.request != request)
        if self._current is not None and self._current.task.request == request:
            self._current = None

    def step(self, *, alone: bool) -> Verdict | None:
        """Read one piece of the oldest check and return its verdict when it is through."""
        if not self.waiting:
            return None
        if self._current is None:
            task = self.waiting[0]
            self._current = Scoring(task=task, reader=self.new_reader(len(task.prompt) + len(task.answer)))
        scoring = self._current
        scoring.advance(self.tokens_alone if alone else self.tokens_beside)
        if not scoring.done:
            return None
        self.waiting.popleft()
        self._current = None
        return scoring.verdict()


def judge(
    logits: Tensor, claimed: list[int], sampling: Sampling, *, first_position: int
) -> tuple[list[float], list[float]]:
    """Return margins, at most ``MARGIN_MAX`` each, and log probabilities of ``claimed`` by ``logits`` (N, V)."""
    tokens = torch.tensor(claimed, device=logits.device)[:, None]
    chosen = logits.gather(1, tokens)[:, 0]
    logprobs: list[float] = (chosen - logits.logsumexp(-1)).tolist()
    if sampling.temperature_milli == 0:
        behind: list[float] = (logits.max(-1).values - chosen).tolist()
    else:
        scaled = logits * (1000 / sampling.temperature_milli)
        behind = [
            _behind(row, token, sampling, first_position + i)
            for i, (row, token) in enumerate(zip(scaled, claimed, strict=True))
        ]
    return [min(max(margin, 0.0), MARGIN_MAX) for margin in behind], logprobs


def _behind(scaled: Tensor, claimed: int, sampling: Sampling, position: int) -> float:
    """Return how far ``claimed`` is behind the token that the sampler takes from ``scaled`` (V,)."""
    token = torch.tensor([claimed], device=scaled.device)
    value = scaled[token] + gumbel_noise(sampling.seed, position, token)
    if sampling.top_p_milli == 1000:
        everything = torch.arange(len(scaled), device=scaled.device)
        return float((scaled + gumbel_noise(sampling.seed, position, everything)).max() - value)
    # Another rounding may move a token over the nucleus's border: only those well inside are surely in, and one
    # that is only just outside may have been in.
    top_p = sampling.top_p_milli / 1000
    inside = _nucleus(scaled, top_p - _BORDER)
    best = (scaled[inside] + gumbel_noise(sampling.seed, position, inside)).max()
    behind = float((best - value).clamp(min=0))
    if top_p + _BORDER < 1 and claimed not in inside:
        border = _nucleus(scaled, top_p + _BORDER)[-1]
        behind += float((scaled[border] - scaled[token]).clamp(min=0))
    return behind


def _nucleus(scaled: Tensor, top_p: float) -> Tensor:
    """Return the smallest likeliest set whose mass reaches ``top_p``, likeliest first; never empty."""
    total = scaled.logsumexp(-1)
    values, tokens = scaled.topk(min(_LIKELIEST, len(scaled)))
    if float((values - total).exp().sum()) < top_p:
        values, tokens = scaled.sort(descending=True)
    mass = (values - total).exp().double()
    inside = (mass.cumsum(-1) - mass) < top_p
    inside[0] = True
    return tokens[inside]


def mean_margin(margins: list[float]) -> float:
    """Return the figure that is compared with a threshold; 0 for no tokens."""
    return math.fsum(margins) / max(1, len(margins))
