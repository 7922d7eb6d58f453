import errno

import pytest
import torch

from node.errors import ExecutionError
from node.execution.engine.faults import tell_fault

CUDA = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported late\n"
CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (MemoryError(), "worker_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "worker_memory"),
        (RuntimeError(CPU_MEMORY), "worker_memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "worker_memory"),
        (torch.AcceleratorError(CUDA), "device_fault"),
        (RuntimeError(CUDA), "device_fault"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device_fault"),
        (ExecutionError("expected CUDA device cuda:7, torch sees 0", code="device"), "device"),
        (RuntimeError("the size of tensor a must match"), "worker_fault"),
        (ValueError("CUDA error in a prompt"), "worker_fault"),
    ],
)
def test_each_fault_has_its_code(exc: Exception, code: str) -> None:
    fault = tell_fault(exc)
    assert fault.code == code
    assert "\n" not in fault.message and len(fault.message) < 400


def test_fault_quotes_no_prompt() -> None:
    assert tell_fault(KeyError("my secret question")).message == "the worker failed: KeyError"
