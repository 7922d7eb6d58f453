"""The tensors of a model's safetensors files, each checked against the shape that its user expects.

What the tensors are for is ``llama.py``'s and ``moe.py``'s business.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor


class Weights(Protocol):
    """Gives the tensors of one model."""

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return a copy of the tensor ``name`` in the model's dtype, on its device.

        Raises:
            KeyError: there is none.
            ValueError: it has another shape.
        """


@contextmanager
def open_weights(folder: Path, *, device: torch.device, dtype: torch.dtype) -> Iterator[Weights]:
    """Map every weights file of ``folder``, whose headers the model store has checked."""
    with ExitStack() as stack:
        files: dict[str, Any] = {}  # Any: safetensors has no types
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(str(path), framework="pt", device=str(device)))
            files.update(dict.fromkeys(file.keys(), file))

        def weights(name: str, *shape: int) -> Tensor:
            tensor: Tensor = files[name].get_tensor(name)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
            # A copy even when the type fits: otherwise the weights stay pages of a file that may change.
            return tensor.to(dtype, copy=True)

        yield weights
