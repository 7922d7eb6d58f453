import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from node.errors import JobRefusedError
from node.execution.engine.items import Item, ServedItems
from node.execution.frames import Failed, PrepareItems, StepPiece
from protocol.fields import Task
from protocol.tasks.embed import EmbedInput, EmbedOutput, unpack_vector
from protocol.tasks.forward import ForwardInput, ForwardOutput
from protocol.tasks.registry import (
    ItemInput,
    ItemOutput,
    TaskOutput,
    decode_task_output_untrusted,
    encode_task_input,
    task_of,
)
from protocol.tasks.vad import VadInput
from protocol.tensors import read_tensors, values_of
from scripts.spec.items import floats, tensor_file

MODEL = b"m" * 32
NO_NUMBER = 7


@dataclass(frozen=True)
class Weighed:
    weight: int


class Lengths:
    """A network whose vector of a text is its length and how many items were computed beside it."""

    task: Task = "embed"
    budget = 10

    def items(self, task_input: ItemInput) -> tuple[int, list[Item]]:
        assert isinstance(task_input, EmbedInput)
        return task_input.units_in_max, [Weighed(len(text)) for text in task_input.texts]

    def compute(self, items: Sequence[Item]) -> list[ItemOutput | None]:
        return [
            None if item.weight == NO_NUMBER else EmbedOutput(vector=struct.pack("<2f", item.weight, len(items)))
            for item in items
        ]

    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"double": tensors["x"] * 2}

    def check(self, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        if set(tensors) != {"x"}:
            raise JobRefusedError("expected x", code="input")
        return {"double": tuple(tensors["x"].shape)}

    def example(self) -> tuple[int, list[Item]]:
        return 4, [Weighed(4)]


@pytest.fixture
def served() -> ServedItems:
    return ServedItems(Lengths(), device=torch.device("cpu"), units_max=1000)


def hold(served: ServedItems, request: int, task_input: ItemInput) -> int:
    frame = PrepareItems(
        request=request, model=MODEL, task=task_of(task_input), data=encode_task_input(task_input)
    )
    held = served.prepare(frame)
    served.start(held)
    return held.units_in


def texts(*sizes: int) -> EmbedInput:
    return EmbedInput(texts=tuple("x" * size for size in sizes))


def step(served: ServedItems) -> list[tuple[int, TaskOutput]]:
    given = served.step()
    return [
        (piece.request, decode_task_output_untrusted(piece.task, piece.result))
        for piece in given
        if isinstance(piece, StepPiece)
    ]


def numbers(outputs: list[tuple[int, TaskOutput]]) -> list[tuple[int, int, int]]:
    """(request, length of the text, items of the step)"""
    return [
        (request, *map(int, unpack_vector(output.vector)))  # type: ignore[misc]  # two numbers each
        for request, output in outputs
        if isinstance(output, EmbedOutput)
    ]


def test_jobs_take_turns_within_the_budget_of_a_step(served: ServedItems) -> None:
    hold(served, 1, texts(4, 4, 4, 4))
    hold(served, 2, texts(3))
    assert numbers(step(served)) == [(1, 4, 2), (2, 3, 2)]
    assert numbers(step(served)) == [(1, 4, 2), (1, 4, 2)]
    outputs = step(served)
    assert numbers(outputs) == [(1, 4, 1)] and outputs[0][1].finish == "stop"
    assert served.idle


def test_item_that_weighs_more_than_the_budget_runs_alone(served: ServedItems) -> None:
    hold(served, 1, texts(2, 40, 2))
    assert [numbers(step(served)) for _ in range(3)] == [[(1, 2, 1)], [(1, 40, 1)], [(1, 2, 1)]]


def test_only_the_last_output_of_a_job_finishes_it(served: ServedItems) -> None:
    hold(served, 1, texts(1, 1, 1))
    assert [output.finish for _, output in step(served)] == [None, None, "stop"]


def test_job_fails_alone_when_its_result_is_no_number(served: ServedItems) -> None:
    hold(served, 1, texts(1, NO_NUMBER, 1))
    hold(served, 2, texts(1, 1))
    given = served.step()
    assert [(type(it), it.request) for it in given] == [
        (StepPiece, 1),
        (StepPiece, 2),
        (Failed, 1),
        (StepPiece, 2),
    ]
    assert served.idle


def test_cancelled_job_is_forgotten(served: ServedItems) -> None:
    hold(served, 1, texts(9, 9))
    hold(served, 2, texts(9))
    served.cancel(1)
    served.cancel(7)
    assert numbers(step(served)) == [(2, 9, 1)] and not served.has_jobs


def test_tensors_run_alone_and_come_back_in_frames(served: ServedItems) -> None:
    values = [float(number) for number in range(20_000)]
    tensors = tensor_file(("x", "F32", (len(values),), floats(*values)))
    hold(served, 1, texts(1))
    hold(served, 2, ForwardInput(tensors=tensors, output_bytes_max=100_000))
    assert numbers(step(served)) == [(1, 1, 1)]
    outputs = [output for _, output in step(served) if isinstance(output, ForwardOutput)]
    data = b"".join(output.data for output in outputs)
    assert [output.finish for output in outputs] == [None, None, "stop"]
    assert list(values_of(data, read_tensors(data)["double"]))[:3] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("task_input", "code", "fault"),
    [
        (texts(*[20] * 40), "context_exceeded", "at most 1000"),
        (VadInput(samples=bytes(2)), "input", "does embed, not vad"),
        (ForwardInput(tensors=tensor_file(("y", "U8", (1,), b"a")), output_bytes_max=9), "input", "expected x"),
        (
            ForwardInput(tensors=tensor_file(("x", "U8", (1,), b"a")), output_bytes_max=9),
            "context_exceeded",
            "output_bytes_max is 9",
        ),
    ],
    ids=["units", "task", "tensors", "room"],
)
def test_job_is_refused_before_it_is_held(
    served: ServedItems, task_input: ItemInput, code: str, fault: str
) -> None:
    with pytest.raises(JobRefusedError, match=fault) as refused:
        hold(served, 1, task_input)
    assert refused.value.code == code and served.idle


@pytest.mark.slow
def test_speed_is_measured_in_units_in(served: ServedItems) -> None:
    assert served.measure() > 1000
