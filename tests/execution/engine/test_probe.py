import pytest
import torch

from node.errors import ExecutionError
from node.execution.engine.backend import TORCH_DTYPES
from node.execution.engine.probe import check_products

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=TORCH_DTYPES)
def test_device_that_computes_passes_in_every_dtype(dtype: torch.dtype) -> None:
    check_products(CPU, dtype)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_device_fails_when_one_number_is_wrong(monkeypatch: pytest.MonkeyPatch, kind: torch.dtype) -> None:
    right = torch.Tensor.matmul

    def wrong(left: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        found = right(left, other)
        if found.dtype == kind:
            found[3, 7] += 512
        return found

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    with pytest.raises(ExecutionError, match=r"got 1 of 65536 numbers wrong") as failed:
        check_products(CPU, torch.bfloat16)
    assert failed.value.code == "device_fault"
