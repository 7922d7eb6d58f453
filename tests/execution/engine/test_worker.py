import weakref
from pathlib import Path

import pytest
import torch

from node.errors import ExecutionError
from node.execution.engine.worker import Worker
from node.execution.frames import (
    FRAME_BYTES_MAX,
    Cancel,
    Failed,
    FromWorker,
    Load,
    Loaded,
    Measure,
    Measured,
    Prepare,
    Prepared,
    Probe,
    Probed,
    Start,
    Step,
    StepPiece,
    ToWorker,
    encode_frame,
)
from protocol import limits
from protocol.task import ChatMessage

MODEL = b"m" * 32


class EnoughError(Exception):
    """Ends the endless loop of a worker under test."""


class ScriptedLink:
    """Gives frames to a worker's reader, keeps what the worker sends, and ends it after ``steps`` steps."""

    def __init__(self, frames: list[ToWorker], steps: int) -> None:
        self._frames, self._steps = frames, steps
        self.sent: list[FromWorker] = []

    def receive(self) -> ToWorker | None:
        return self._frames.pop(0) if self._frames else None

    def send(self, frame: FromWorker) -> None:
        self.sent.append(frame)
        self._steps -= isinstance(frame, Step)
        if self._steps <= 0:
            raise EnoughError

    def steps(self) -> list[list[tuple[int, str | None]]]:
        """(request, finish) of every piece, step by step."""
        return [[(p.request, p.finish) for p in frame.pieces] for frame in self.sent if isinstance(frame, Step)]


def load(folder: Path, **fields: object) -> Load:
    settings: dict[str, object] = {
        "request": 1,
        "model": MODEL,
        "folder": str(folder),
        "dtype": "fp32",
        "slots": 1,
        "context_tokens": 128,
        "prefill_tokens": 16,
    }
    return Load(**{**settings, **fields})


def prepare(request: int, prompt: str = "abc", *, out: int = 100, model: bytes = MODEL) -> Prepare:
    return Prepare(request=request, model=model, messages=(), prompt=prompt, stop=(), held=b"", tokens_out_max=out)


def start(request: int, *, out: int = 100) -> Start:
    return Start(request=request, temperature_milli=0, top_p_milli=1000, seed=0, tokens_out_max=out)


def run(folder: Path, frames: list[ToWorker], *, steps: int) -> ScriptedLink:
    """Load the tiny model, hand ``frames`` to the reader, and run until ``steps`` passes are told."""
    link = ScriptedLink(frames, steps)
    worker = Worker(link, torch.device("cpu"))
    worker._handle(load(folder))
    worker.read()
    with pytest.raises(EnoughError):
        worker.run()
    return link


class Lavish:
    """A model of whose step every piece is as long as one may be."""

    idle, has_jobs = False, True

    def step(self) -> list[StepPiece]:
        result = bytes(limits.DATA_FRAME_BYTES_MAX)
        return [StepPiece(request=it, tokens=(), text="", finish=None, result=result) for it in range(200)]


def test_worker_cuts_what_a_step_gave_into_frames_that_travel() -> None:
    link = ScriptedLink([], steps=1000)
    worker = Worker(link, torch.device("cpu"))
    worker._models[MODEL] = Lavish()
    worker._step()
    assert [request for step in link.steps() for request, _ in step] == list(range(200))
    assert all(len(encode_frame(frame)) <= FRAME_BYTES_MAX for frame in link.sent)


class Broken:
    """A model that has no numbers for one job, and some for another."""

    idle, has_jobs = False, True

    def step(self) -> list[StepPiece | Failed]:
        return [
            StepPiece(request=1, tokens=(), text="", finish=None, result=b"a"),
            Failed(request=1, code="not_finite", message="no number"),
            StepPiece(request=2, tokens=(), text="", finish=None, result=b"b"),
        ]


def test_worker_tells_of_a_job_that_failed_behind_what_it_gave() -> None:
    link = ScriptedLink([], steps=1000)
    worker = Worker(link, torch.device("cpu"))
    worker._models[MODEL] = worker._owner[1] = worker._owner[2] = Broken()
    worker._step()
    assert [type(frame) for frame in link.sent] == [Step, Failed]
    assert list(worker._owner) == [2]


def test_worker_gives_the_slot_of_a_cancelled_job_to_the_next(tiny_folder: Path) -> None:
    frames = [prepare(2), start(2), prepare(3), start(3), Cancel(request=2), Cancel(request=2), Cancel(request=9)]
    assert run(tiny_folder, frames, steps=3).steps() == [[(3, None)]] * 3


def test_worker_tells_every_pass_of_a_long_prompt(tiny_folder: Path) -> None:
    link = run(tiny_folder, [prepare(2, "x" * 40, out=20), start(2, out=20)], steps=4)
    assert link.steps() == [[], [], [(2, None)], [(2, None)]]


def test_worker_forgets_a_prompt_that_is_cancelled_before_its_start(tiny_folder: Path) -> None:
    link = run(tiny_folder, [prepare(2), Cancel(request=2), start(2), prepare(3), start(3)], steps=1)
    assert Failed(request=2, code="protocol", message="no such prompt is held") in link.sent
    assert link.steps() == [[(3, None)]]


def test_worker_refuses_a_model_that_it_has_not_loaded(tiny_folder: Path) -> None:
    frames = [prepare(2, model=b"?" * 32), prepare(3), start(3)]
    link = run(tiny_folder, frames, steps=1)
    codes = [frame.code for frame in link.sent if isinstance(frame, Failed)]
    assert codes == ["model_unknown"]


def test_worker_answers_load_prepare_and_measure_with_their_requests(tiny_folder: Path) -> None:
    frames = [Measure(request=7, model=MODEL), prepare(2, "four"), start(2)]
    link = run(tiny_folder, frames, steps=1)
    assert Loaded(request=1) in link.sent
    assert Prepared(request=2, tokens=4) in link.sent
    (measured,) = [frame for frame in link.sent if isinstance(frame, Measured)]
    assert measured.request == 7
    assert measured.tokens_per_s_milli > 0


def test_worker_measures_a_model_that_is_loaded_while_another_has_a_job(tiny_folder: Path) -> None:
    other = b"n" * 32
    frames = [prepare(2), start(2), load(tiny_folder, request=5, model=other), Measure(request=6, model=other)]
    link = run(tiny_folder, frames, steps=2)
    (measured,) = [frame for frame in link.sent if isinstance(frame, Measured)]
    assert measured.request == 6 and measured.tokens_per_s_milli > 0
    assert link.steps() == [[(2, None)]] * 2


def test_worker_refuses_to_measure_a_model_that_has_a_job(tiny_folder: Path) -> None:
    link = run(tiny_folder, [prepare(2), start(2), Measure(request=6, model=MODEL)], steps=1)
    (failed,) = [frame for frame in link.sent if isinstance(frame, Failed)]
    assert (failed.request, failed.code) == (6, "device_busy")
    assert link.steps() == [[(2, None)]]


def test_worker_keeps_its_models_when_another_cannot_be_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    frames = [load(tmp_path, request=5, model=b"n" * 32), prepare(2), start(2)]
    link = run(tiny_folder, frames, steps=1)
    (failed,) = [frame for frame in link.sent if isinstance(frame, Failed)]
    assert (failed.request, failed.code) == (5, "load")
    assert "config.json" in failed.message
    assert link.steps() == [[(2, None)]]


def test_worker_gives_memory_back_before_it_says_that_a_load_failed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = ScriptedLink([], 1)
    worker = Worker(link, torch.device("cpu"))
    read: list[weakref.ref[torch.Tensor]] = []
    found: list[tuple[bool, int]] = []

    def load_some(load: Load, device: torch.device) -> None:
        weights = torch.ones(3)
        read.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def give_back(device: torch.device) -> None:
        found.append((read[0]() is None, len(link.sent)))

    monkeypatch.setattr("node.execution.engine.worker.load_any", load_some)
    monkeypatch.setattr("node.execution.engine.worker.give_back_memory", give_back)
    worker._handle(load(tiny_folder))
    assert found == [(True, 0)]
    assert [(frame.code, frame.message) for frame in link.sent if isinstance(frame, Failed)] == [
        ("load", "OutOfMemoryError: CUDA out of memory")
    ]


def test_worker_tells_whether_its_device_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    link = ScriptedLink([], 1)
    worker = Worker(link, torch.device("cpu"))
    worker._handle(Probe(request=3, dtype="bf16"))

    def fail(device: torch.device, dtype: torch.dtype) -> None:
        raise ExecutionError("1 of 4 numbers wrong", code="device_fault")

    monkeypatch.setattr("node.execution.engine.worker.check_products", fail)
    worker._handle(Probe(request=4, dtype="bf16"))
    assert link.sent == [Probed(request=3), Failed(request=4, code="device_fault", message="1 of 4 numbers wrong")]


def test_worker_ends_the_answer_at_its_bound_and_the_engine_is_idle_then(tiny_folder: Path) -> None:
    link = run(tiny_folder, [prepare(2, out=3), start(2, out=3), prepare(3), start(3)], steps=4)
    assert link.steps() == [[(2, None)], [(2, None)], [(2, "length")], [(3, None)]]


def test_worker_leaves_nothing_in_a_slot_when_it_has_measured(tiny_folder: Path) -> None:
    with_messages = Prepare(
        request=2,
        model=MODEL,
        messages=(ChatMessage(role="user", content="hé"),),
        prompt="",
        stop=(),
        held=b"",
        tokens_out_max=2,
    )
    link = run(tiny_folder, [Measure(request=8, model=MODEL), with_messages, start(2, out=2)], steps=2)
    # The measurement's own sequence has left its slot.
    assert [len(step) for step in link.steps()][-1] == 1
