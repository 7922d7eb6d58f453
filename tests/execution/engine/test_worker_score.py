from dataclasses import dataclass
from pathlib import Path

import pytest

from node.execution.frames import Cancel, Failed, Score, Scored, Step, ToWorker
from protocol.task import pack_tokens
from tests.execution.engine.test_worker import MODEL, ScriptedLink, prepare, run, start

PROMPT = "a check of forty characters, more or less"
ANSWER = tuple(range(33))


def score(request: int, *, answer: tuple[int, ...] = ANSWER, prompt: str = PROMPT, claimed: bytes = b"") -> Score:
    return Score(
        request=request,
        model=MODEL,
        messages=(),
        prompt=prompt,
        held=b"",
        answer=pack_tokens(answer),
        temperature_milli=0,
        top_p_milli=1000,
        seed=0,
        fingerprint=claimed,
    )


@dataclass
class Told:
    """What a worker sent until it had made ``steps`` passes."""

    link: ScriptedLink

    @property
    def scored(self) -> list[Scored]:
        return [frame for frame in self.link.sent if isinstance(frame, Scored)]

    @property
    def codes(self) -> list[tuple[int, str]]:
        return [(frame.request, frame.code) for frame in self.link.sent if isinstance(frame, Failed)]


def tell(folder: Path, frames: list[ToWorker], *, steps: int) -> Told:
    return Told(run(folder, frames, steps=steps))


def test_worker_scores_an_answer_while_a_job_gets_a_token_in_every_pass(tiny_folder: Path) -> None:
    # 73 tokens in pieces of 2: 37 passes, and in each of them the job goes on.
    told = tell(tiny_folder, [prepare(2, out=100), start(2), score(3)], steps=39)
    (scored,) = told.scored
    assert scored.request == 3
    assert len(scored.margins) == len(scored.logprobs) == len(ANSWER)
    assert len(scored.fingerprint) == 512
    assert told.link.steps() == [[(2, None)]] * 39
    before = told.link.sent[: told.link.sent.index(scored)]
    assert sum(isinstance(frame, Step) for frame in before) == 37


def test_worker_scores_in_whole_passes_when_no_job_runs(tiny_folder: Path) -> None:
    alone = tell(tiny_folder, [score(3), score(4), prepare(2, out=1), start(2, out=1)], steps=7)
    # The job's only pass read 2 tokens of the check, the 71 others came 16 at a time.
    before = alone.link.sent[: alone.link.sent.index(alone.scored[0])]
    assert sum(isinstance(frame, Step) for frame in before) == 6


def test_worker_forgets_a_check_that_is_cancelled(tiny_folder: Path) -> None:
    frames: list[ToWorker] = [score(3), Cancel(request=3), score(4), prepare(2), start(2)]
    assert [frame.request for frame in tell(tiny_folder, frames, steps=40).scored] == [4]


def test_fingerprint_of_an_answer_is_the_one_that_its_check_finds(tiny_folder: Path) -> None:
    told = tell(tiny_folder, [prepare(2, PROMPT, out=70), start(2, out=70)], steps=72)
    pieces = [piece for frame in told.link.sent if isinstance(frame, Step) for piece in frame.pieces]
    answer = tuple(token for piece in pieces for token in piece.tokens)
    assert len(answer) == 70 and {piece.fingerprint for piece in pieces[:-1]} == {b""}
    claimed = pieces[-1].fingerprint
    assert len(claimed) == 1024
    # The whole of it; its beginning, as of a longer answer; and of another answer than it was made for.
    claims = ((answer, claimed), (answer, claimed[:512]), (answer[::-1], claimed))
    found = []
    for tokens, bytes_ in claims:
        check = score(3, answer=tokens, claimed=bytes_)
        found += tell(tiny_folder, [check, prepare(2), start(2)], steps=58).scored
    same, beginning, other = (list(frame.distances) for frame in found)
    assert len(same) == 2 and max(same) < 0.01 and beginning == same[:1]
    assert min(other) > 0.1


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (score(3, answer=()), "input"),
        (score(3, answer=(1, 260)), "input"),
        (score(3, answer=ANSWER * 5), "context_exceeded"),
        (score(3, prompt="x" * 5000), "context_exceeded"),
        (score(3, claimed=b"\x00" * 511), "input"),
        (score(3, claimed=b"\x00" * 1024), "input"),
    ],
)
def test_worker_refuses_a_check_that_cannot_be_made(tiny_folder: Path, wrong: Score, code: str) -> None:
    assert tell(tiny_folder, [wrong, prepare(2), start(2)], steps=1).codes == [(3, code)]
