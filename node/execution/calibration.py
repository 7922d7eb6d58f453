"""Which margin of a re-checked answer is too far: calibrated on honest answers of a model in one dtype, and kept.

Rounding differs with the batch, the machine and the dtype, and more in one model than in another: no constant
fits. The answers to calibrate with come from this node, or from re-checks of providers that are trusted. What a
margin is: ``engine/score.py``; what follows from one that is too far is for audits to decide.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from node.durable import USUAL, replace_file
from node.errors import ModelError
from node.execution.interface import Executor, Piece, Score, Scorer
from protocol.fields import Dtype
from protocol.task import GenerateInput, Sampling
from protocol.units import ModelId

HEADROOM: Final = 4.0
"""Times the worst honest answer. A mean over 64 tokens hangs on its few near ties, which have a long tail: of 288
fresh checks the worst was at 2.4 times the worst calibrated one. The best answer in 4 bits or without a layer was
at 20 times."""
# Honest answers that all agree to the last bit would otherwise leave no room for the first rounding.
MARGIN_MIN: Final = 0.002
ANSWERS_MIN: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Mean margins above which an answer of ``answer_tokens`` or more is not honest."""

    greedy: float
    sampled: float
    answers: int
    """Honest answers of each kind that it rests on."""
    answer_tokens: int

    def is_far(self, score: Score, sampling: Sampling) -> bool:
        """Return whether an answer is further from this model's own than honest ones were."""
        most = self.greedy if sampling.temperature_milli == 0 else self.sampled
        # Not "above": a margin that is no number says that something here or there is broken.
        return not score.mean_margin <= most


class Both(Executor, Scorer, Protocol):
    """What runs and re-checks; ``node.execution.pool.WorkerPool`` is one."""


def calibrate(greedy: Sequence[float], sampled: Sequence[float], *, answer_tokens: int) -> Thresholds:
    """Return thresholds from the mean margins of honest answers.

    Raises:
        ValueError: there are too few of them to tell anything, or one is no number.
    """
    answers = min(len(greedy), len(sampled))
    if answers < ANSWERS_MIN:
        raise ValueError(f"expected {ANSWERS_MIN} honest answers of each kind, got {answers}")
    if not all(map(math.isfinite, (*greedy, *sampled))):
        raise ValueError("expected margins that are numbers, got one that is none")
    return Thresholds(
        greedy=max(MARGIN_MIN, HEADROOM * max(greedy)),
        sampled=max(MARGIN_MIN, HEADROOM * max(sampled)),
        answers=answers,
        answer_tokens=answer_tokens,
    )


async def calibrate_here(
    node: Both, model_id: ModelId, inputs: Sequence[GenerateInput], *, answer_tokens: int = 64
) -> Thresholds:
    """Answer every input greedily and sampled, all at once as a busy node would, re-check, and calibrate.

    Raises:
        ExecutionError, ValueError: as the executor; fewer than ``ANSWERS_MIN`` inputs.
    """
    found: dict[bool, list[float]] = {True: [], False: []}

    async def one(number: int, task_input: GenerateInput, is_greedy: bool) -> None:
        sampling = Sampling(temperature_milli=0 if is_greedy else 800, top_p_milli=1000, seed=number)
        tokens = await _answer(node, model_id, task_input, sampling, answer_tokens)
        score = await node.score(model_id, task_input, tokens, sampling)
        found[is_greedy].append(score.mean_margin)

    async with trio.open_nursery() as nursery:
        for number, task_input in enumerate(inputs):
            for is_greedy in (True, False):
                nursery.start_soon(one, number, task_input, is_greedy)
    return calibrate(found[True], found[False], answer_tokens=answer_tokens)


async def _answer(
    node: Executor, model_id: ModelId, task_input: GenerateInput, sampling: Sampling, tokens_max: int
) -> list[int]:
    key = f"calibrate {sampling.temperature_milli} {sampling.seed}"
    prompt = await node.prepare(key, model_id, task_input, tokens_max)
    sink, pieces = trio.open_memory_channel[Piece](tokens_max + 1)
    with sink:
        await node.generate(prompt, sampling, tokens_out_max=tokens_max, sink=sink)
    with pieces:
        return [token async for piece in pieces for token in piece.tokens]


@dataclass(frozen=True, slots=True)
class ThresholdFile:
    """Thresholds by model and dtype in one JSON file."""

    path: Path

    def find(self, model_id: ModelId, dtype: Dtype) -> Thresholds | None:
        """Return what was calibrated for this model in this dtype. Blocks.

        Raises:
            ModelError: the file is not one that ``put`` wrote.
        """
        entry = self._read().get(f"{model_id.hex()} {dtype}")
        try:
            return None if entry is None else Thresholds(**entry)
        except TypeError as exc:
            raise ModelError(f"{self.path}: expected thresholds, got {entry!r}") from exc

    def put(self, model_id: ModelId, dtype: Dtype, thresholds: Thresholds) -> None:
        """Keep thresholds in place of earlier ones. Blocks."""
        entries = self._read() | {f"{model_id.hex()} {dtype}": asdict(thresholds)}
        replace_file(self.path, (json.dumps(entries, indent=1) + "\n").encode(), mode=USUAL)

    def _read(self) -> dict[str, Any]:  # Any: parsed JSON, checked by who uses it
        try:
            entries = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as exc:
            raise ModelError(f"{self.path}: expected JSON, got {exc}") from exc
        if not isinstance(entries, dict):
            raise ModelError(f"{self.path}: expected an object, got {type(entries).__name__}")
        return entries
