from pathlib import Path
from typing import Literal

import pytest

from node.errors import ExecutionError
from node.execution.memory_plan import BYTES_OF
from node.execution.model_fit import choose_dtype, decodes_compiled
from node.execution.shape import read_decoder_shape
from tests.execution.tiny_families import FAMILIES, write_family


@pytest.mark.parametrize(
    ("wanted", "offered", "expected"),
    [
        ("auto", ("bf16", "fp32"), "bf16"),
        ("auto", ("fp16", "fp32"), "fp16"),
        ("fp32", ("bf16", "fp16", "fp32"), "fp32"),
    ],
)
def test_dtype_is_the_devices_best_or_the_one_that_is_named(
    wanted: str, offered: tuple[str, ...], expected: str
) -> None:
    assert choose_dtype(wanted, offered) == expected


def test_dtype_is_refused_when_the_device_does_not_compute_in_it() -> None:
    # A card below sm_80 has no bfloat16.
    with pytest.raises(ExecutionError, match="expected one of fp16, fp32 on this device, got 'bf16'") as refused:
        choose_dtype("bf16", ("fp16", "fp32"))
    assert refused.value.code == "dtype"


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_step_is_for_dense_models_in_bf16_on_a_cpu(family: str, tmp_path: Path) -> None:
    shape = read_decoder_shape(write_family(tmp_path, family))
    kinds: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    taken = {(kind, dtype) for kind in kinds for dtype in BYTES_OF if decodes_compiled(shape, kind, dtype)}
    dense = family in ("llama", "mistral", "qwen2", "qwen3")
    assert taken == ({("cpu", "bf16")} if dense else set())
