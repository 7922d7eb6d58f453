"""What a fault of the engine is called: the code and the words that end a worker's jobs."""

import errno
from typing import Final

import torch

from node.errors import ExecutionError
from node.execution.frames import Fault

# torch has no type of its own for a CPU without memory: the allocator's and mmap's words.
_CPU_MEMORY_WORDS: Final = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")
# A CUDA error is sticky: every later call in this process fails, so only another process helps.
_DEVICE_WORDS: Final = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error")
_MESSAGE_CHARS_MAX: Final = 300


def tell_fault(exc: BaseException) -> Fault:
    """Return what the daemon is told of an error that ends the worker.

    The text of an unknown one is left out: it may quote a prompt.
    """
    text = str(exc)
    if isinstance(exc, ExecutionError):
        return Fault(code=exc.code, message=text[:_MESSAGE_CHARS_MAX])
    is_memory = isinstance(exc, MemoryError | torch.OutOfMemoryError)
    is_memory |= isinstance(exc, OSError) and exc.errno == errno.ENOMEM
    if is_memory or (isinstance(exc, RuntimeError) and any(words in text for words in _CPU_MEMORY_WORDS)):
        return Fault(code="worker_memory", message=f"the device's memory did not suffice: {_first_line(text)}")
    is_device = isinstance(exc, torch.AcceleratorError) or any(words in text for words in _DEVICE_WORDS)
    if isinstance(exc, RuntimeError) and is_device:
        return Fault(code="device_fault", message=f"the device failed: {_first_line(text)}")
    return Fault(code="worker_fault", message=f"the worker failed: {type(exc).__name__}")


def _first_line(text: str) -> str:
    return (text.splitlines() or ["no more is known"])[0][:_MESSAGE_CHARS_MAX]
