"""The device that this worker was promised, as torch sees it. CUDA paths: not run on a GPU yet."""

import contextlib
import ctypes
import gc
from pathlib import Path
from typing import Final

import torch

from node.errors import ExecutionError
from node.execution.frames import Ready
from protocol.fields import Dtype

# Without these instructions oneDNN emulates bfloat16, which is slower than float32.
_BF16_FLAGS: Final = ("avx512_bf16", "amx_bf16", "bf16")

# glibc's malloc.h; the first is at most 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def open_device(name: str, threads: int) -> torch.device:
    """Return the device called ``name``.

    Raises:
        ExecutionError: ``device``: torch does not see it. A container without the driver's files makes torch
            fall back to the CPU without a word, so this is asked and not assumed.
    """
    device = torch.device(name)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ExecutionError(f"expected CUDA device {name}, torch sees {found} CUDA devices", code="device")
        torch.cuda.set_device(device)
    torch.set_num_threads(threads)
    fix_numerics()
    _keep_working_memory()
    return device


def fix_numerics() -> None:
    """Make products what the profiles say (spec 04, section 10): fp32 is fp32, and 16 bits are summed up in fp32.

    torch's defaults are others: cuDNN takes TF32 for convolutions, and partial sums of split 16-bit products are
    16 bits wide.
    """
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]  # a property of the module
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def limit_memory(device: torch.device, percent: int) -> None:
    """Let torch fill at most ``percent`` of a CUDA device: beyond that it fails, and the device serves others."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(percent / 100, device)


def describe_device(device: torch.device) -> Ready:
    """Return what torch knows of the device; dtypes are ordered by what should be served."""
    runtime = f"torch {torch.__version__.split('+')[0]}"
    if device.type == "cpu":
        has_bf16 = bool(_cpu_flags() & set(_BF16_FLAGS))
        dtypes: tuple[Dtype, ...] = ("bf16", "fp32") if has_bf16 else ("fp32", "bf16")
        return Ready(architecture=torch.backends.cpu.get_cpu_capability().lower(), dtypes=dtypes, runtime=runtime)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    uuid = str(getattr(properties, "uuid", "") or "")
    return Ready(
        name=properties.name,
        architecture=f"sm_{properties.major}{properties.minor}",
        memory_total_bytes=total,
        memory_free_bytes=free,
        dtypes=("bf16", "fp16", "fp32") if properties.major >= 8 else ("fp16", "fp32"),
        runtime=runtime,
        uuid=f"GPU-{uuid}" if uuid and not uuid.startswith("GPU-") else uuid or None,
    )


def give_back_memory(device: torch.device) -> None:
    """Return to the machine what a model left behind that nobody refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    # glibc keeps small freed blocks; other C libraries have no such call.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _keep_working_memory() -> None:
    """Let the C library keep what one layer freed for the next; ``give_back_memory`` returns it after a model.

    Otherwise a pass now and then returned every layer's temporaries to the kernel and had 120 MB of zeroed pages
    back: 60 ms more, and the longest of a long prompt's passes (205 to 238 ms where 150 were planned).
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, size in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 256 << 20)):
            library.mallopt(option, size)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    # "flags" on x86, "Features" on ARM.
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return set(flags.partition(":")[2].split())
