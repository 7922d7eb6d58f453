import pytest

from node.errors import ExecutionError
from node.execution.model_fit import choose_dtype


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
