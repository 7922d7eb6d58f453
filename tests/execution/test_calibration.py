import math
from pathlib import Path

import pytest
import trio

from node.errors import ModelError
from node.execution.calibration import MARGIN_MIN, ThresholdFile, Thresholds, calibrate, calibrate_here
from node.execution.interface import Piece, Prompt, Score
from protocol.task import GenerateInput, Sampling
from protocol.units import ModelId
from tests.fakes import ScriptedExecutor

MODEL = ModelId(b"m" * 32)
WARM = Sampling(temperature_milli=800, seed=1)


def score(margin: float) -> Score:
    return Score(margins=(margin, 0.0), logprobs=(-1.0, -1.0), fingerprint=b"", distances=())


class Honest(ScriptedExecutor):
    """Answers with the prompt's length and number, and re-checks with a margin that depends on the sampling."""

    def __init__(self) -> None:
        self.scored: list[tuple[str, list[int], int]] = []

    async def prepare(self, job_key, model_id, task_input, tokens_out_max, **_):  # type: ignore[no-untyped-def]  # as the base
        return Prompt(job_key=job_key, model_id=model_id, tokens_in=len(task_input.prompt))

    async def generate(self, prompt, sampling, *, tokens_out_max, sink):  # type: ignore[no-untyped-def]  # as the base
        await sink.send(Piece(tokens=(prompt.tokens_in,), text="", finish=None))
        await trio.lowlevel.checkpoint()
        await sink.send(Piece(tokens=(7,), text="", finish="length"))

    async def score(self, model_id, task_input, answer, sampling, *, fingerprint=b""):  # type: ignore[no-untyped-def]  # as the base
        self.scored.append((task_input.prompt, list(answer), sampling.temperature_milli))
        return score(0.02 if sampling.temperature_milli else 0.01)


async def test_node_calibrates_on_its_own_answers_of_both_kinds() -> None:
    node = Honest()
    inputs = [GenerateInput(prompt="x" * length) for length in range(1, 9)]
    found = await calibrate_here(node, MODEL, inputs, answer_tokens=2)
    assert found == Thresholds(greedy=pytest.approx(0.02), sampled=pytest.approx(0.04), answers=8, answer_tokens=2)
    assert sorted(node.scored) == sorted(
        ("x" * length, [length, 7], milli) for length in range(1, 9) for milli in (0, 800)
    )


def test_threshold_is_above_the_worst_honest_answer_and_never_zero() -> None:
    found = calibrate([0.0] * 8, [0.01] * 7 + [0.04], answer_tokens=64)
    assert (found.greedy, found.sampled) == (MARGIN_MIN, 0.16)
    assert not found.is_far(score(0.31), WARM) and found.is_far(score(0.33), WARM)
    assert found.is_far(score(0.31), Sampling())


def test_margin_that_is_no_number_is_far_and_calibrates_nothing() -> None:
    found = calibrate([0.1] * 8, [0.1] * 8, answer_tokens=64)
    assert found.is_far(score(math.nan), WARM) and found.is_far(score(math.nan), Sampling())
    for margins in ([0.1] * 7 + [math.nan], [math.inf] * 8):
        with pytest.raises(ValueError, match="expected margins that are numbers"):
            calibrate([0.1] * 8, margins, answer_tokens=64)


def test_calibration_is_refused_when_it_rests_on_too_little() -> None:
    with pytest.raises(ValueError, match="expected 8 honest answers of each kind, got 7"):
        calibrate([0.0] * 8, [0.0] * 7, answer_tokens=64)


def test_score_tells_mean_and_exact_share() -> None:
    assert (score(0.5).mean_margin, score(0.5).exact_share) == (0.25, 0.5)


def test_thresholds_are_kept_by_model_and_dtype(tmp_path: Path) -> None:
    file = ThresholdFile(tmp_path / "thresholds.json")
    assert file.find(MODEL, "bf16") is None
    one, two = (calibrate([m] * 8, [m] * 8, answer_tokens=64) for m in (0.1, 0.2))
    file.put(MODEL, "bf16", one)
    file.put(MODEL, "fp32", two)
    file.put(MODEL, "bf16", two)
    assert file.find(MODEL, "bf16") == file.find(MODEL, "fp32") == two
    assert file.find(ModelId(b"n" * 32), "bf16") is None
    for wrong in ("[]", "{", f'{{"{MODEL.hex()} bf16": {{"x": 1}}}}'):
        file.path.write_text(wrong)
        with pytest.raises(ModelError, match="thresholds"):
            file.find(MODEL, "bf16")
