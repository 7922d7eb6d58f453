import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields

from protocol import limits
from protocol.errors import LocalProtocolError, Reason
from protocol.fields import Task
from protocol.task import GenerateInput, GenerateOutput
from protocol.tasks.embed import EmbedInput
from protocol.tasks.registry import (
    INPUTS,
    OUTPUTS,
    compare,
    decode_task_input_untrusted,
    decode_task_output_untrusted,
    encode_task_input,
    encode_task_output,
    serves,
    task_of,
)
from scripts.spec import items, vectors
from tests.protocol.fakes import mutants, reason_of
from tests.protocol.fakes_spec import rows, section

Json = Any  # vectors are JSON of many shapes; a test that misreads one fails
ITEM_TASKS = ("embed", "classify", "vad", "forward")


def load() -> Json:
    return json.loads((vectors.FOLDER / "tasks.json").read_text("utf-8"))


def data_of(row: Json) -> bytes:
    return bytes.fromhex(row["hex"]) + bytes(row.get("zeros", 0))


def test_every_task_that_a_contract_may_name_has_an_input_and_an_output() -> None:
    names = set(Task.__args__)  # type: ignore[attr-defined]  # a Literal
    assert names == set(INPUTS) == set(OUTPUTS)
    assert {task_of(value) for value in (*items.INPUTS, *items.OUTPUTS)} == set(ITEM_TASKS)


@pytest.mark.parametrize("row", load()["inputs"], ids=lambda row: row["task"])
def test_input_is_read_and_counted_as_the_vector_says(row: Json) -> None:
    value = decode_task_input_untrusted(row["task"], data_of(row))
    assert encode_task_input(value) == data_of(row)
    assert not isinstance(value, GenerateInput)
    assert (value.units_in_max, value.units_out) == (row["units_in_max"], row["units_out"])


@pytest.mark.parametrize("row", load()["outputs"], ids=lambda row: row["task"])
def test_output_is_read_and_counted_as_the_vector_says(row: Json) -> None:
    value = decode_task_output_untrusted(row["task"], data_of(row))
    assert (encode_task_output(value), value.units) == (data_of(row), row["units"])


@pytest.mark.parametrize("row", load()["invalid_inputs"], ids=lambda row: row["name"])
def test_input_is_refused_for_the_reason_of_the_vector(row: Json) -> None:
    assert reason_of(lambda data: decode_task_input_untrusted(row["task"], data), data_of(row)) == row["reason"]


@pytest.mark.parametrize("row", load()["invalid_outputs"], ids=lambda row: row["name"])
def test_output_is_refused_for_the_reason_of_the_vector(row: Json) -> None:
    assert reason_of(lambda data: decode_task_output_untrusted(row["task"], data), data_of(row)) == row["reason"]


@pytest.mark.parametrize("row", load()["comparisons"], ids=lambda row: row["name"])
def test_verifier_judges_as_the_vector_says(row: Json) -> None:
    theirs, ours = (
        decode_task_output_untrusted(row["task"], bytes.fromhex(row[side])) for side in ("theirs", "ours")
    )
    assert compare((theirs,), (ours,)).holds == row["holds"]
    assert compare((ours,), (ours,)).holds
    assert not compare((ours, ours), (ours,)).holds


def test_verifier_refuses_outputs_of_another_task() -> None:
    text = GenerateOutput(tokens=(1,), text="a")
    assert not compare((text,), (items.OUTPUTS[0],)).holds


@pytest.mark.parametrize("task", ITEM_TASKS)
@given(data=st.binary(max_size=60))
def test_item_readers_raise_one_class_when_fed_arbitrary_bytes(task: str, data: bytes) -> None:
    assert reason_of(lambda it: decode_task_input_untrusted(task, it), data) is not None
    assert reason_of(lambda it: decode_task_output_untrusted(task, it), data) is not None


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_item_readers_raise_one_class_when_fed_mutants(task: str) -> None:
    for value in items.INPUTS:
        for mutant in mutants(b"input", encode_task_input(value), 200):
            reason_of(lambda it: decode_task_input_untrusted(task, it), mutant)
    for output in items.OUTPUTS:
        for mutant in mutants(b"output", encode_task_output(output), 200):
            reason_of(lambda it: decode_task_output_untrusted(task, it), mutant)


def test_input_travels_when_it_has_as_many_texts_as_may_be() -> None:
    full = EmbedInput(texts=("a",) * limits.TEXTS_MAX)
    assert decode_task_input_untrusted("embed", encode_task_input(full)) == full
    with pytest.raises(LocalProtocolError, match="length <= 2048"):
        encode_task_input(EmbedInput(texts=("a",) * (limits.TEXTS_MAX + 1)))


def test_input_is_refused_when_it_is_too_long() -> None:
    with pytest.raises(LocalProtocolError, match="at most 1048576 travel"):
        encode_task_input(EmbedInput(texts=("x" * limits.INPUT_BYTES_MAX,)))
    too_long = bytes(limits.INPUT_BYTES_MAX + 1)
    assert reason_of(lambda data: decode_task_input_untrusted("vad", data), too_long) is Reason.SIZE


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_specification_lists_every_field_of_a_task(task: str) -> None:
    text = section("04-tasks.md", f"`{task}`")
    head, tail = text.split(f"`{OUTPUTS[task].__name__}`:")
    for kind, part in ((INPUTS[task], head), (OUTPUTS[task], tail.partition("| architecture")[0])):
        written = rows(part)
        assert list(written) == [field.encode_name for field in fields(kind)]
        optional = {name for name, cells in written.items() if cells[0].endswith("?")}
        assert optional == {field.encode_name for field in fields(kind) if not field.required}


def test_tensors_run_through_every_model_that_makes_no_text() -> None:
    assert serves("embed", "embed") and serves("embed", "forward") and serves("generate", "generate")
    assert not serves("generate", "forward") and not serves("embed", "classify")


def test_items_go_on_where_another_provider_stopped() -> None:
    texts = EmbedInput(texts=("a", "b", "c"))
    assert texts.after(2) == EmbedInput(texts=("c",))
    assert [value.after(0) for value in items.INPUTS[3:]] == [None, None]


def test_vector_of_another_byte_order_is_read_alike() -> None:
    assert struct.unpack("<2f", items.OUTPUTS[0].vector) == pytest.approx((0.6, 0.8))  # type: ignore[union-attr]
