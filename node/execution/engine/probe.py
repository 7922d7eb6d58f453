"""Whether a device still computes: a product of whole numbers, whose result is known exactly.

Asked after deaths that repeat, of a fresh process and before it serves. How fast a device is tells ``measure.py``.
"""

from typing import Final

import torch

from node.errors import ExecutionError

# Large enough for the kernels that serve, and small enough for a CPU: 34 million operations.
_SIDE: Final = 256
_PERIODS: Final = (11, 13)


def check_products(device: torch.device, dtype: torch.dtype) -> None:
    """Multiply two matrices in fp32 and in ``dtype`` on the device, and compare with the product of integers.

    Raises:
        ExecutionError: ``device_fault``: the device gave something else.
        RuntimeError: it fails, and this process can use it no more.
    """
    left, right = (_whole_numbers(period) for period in _PERIODS)
    expected = left @ right
    for kind in dict.fromkeys((torch.float32, dtype)):
        with torch.inference_mode():
            found = (left.to(device, kind) @ right.to(device, kind)).cpu()
        # Sums are kept in fp32, which holds them exactly; what is left is one rounding, here as there.
        wrong = int((found != expected.to(kind)).sum())
        if wrong:
            name = str(kind).removeprefix("torch.")
            raise ExecutionError(
                f"expected the known product of two matrices in {name}, got {wrong} of {_SIDE**2} numbers wrong",
                code="device_fault",
            )


def _whole_numbers(period: int) -> torch.Tensor:
    """Return small integers on both sides of 0, as int64 on the CPU."""
    places = torch.arange(_SIDE)
    return (places[:, None] * 7 + places * places * 3) % period - period // 2
