"""Checks the header of a weights file before any library opens the file; the rules are ``protocol/tensors.py``'s.

It needs no torch and never reads the weights.
"""

from pathlib import Path

from node.errors import ModelError
from protocol import tensors
from protocol.tensors import HEADER_BYTES_MAX, LENGTH_BYTES, Tensor

__all__ = ["HEADER_BYTES_MAX", "Tensor", "read_header"]


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors that ``path`` declares, once they fill the file exactly.

    Raises:
        ModelError: the file is not safetensors, or its header breaks a bound or contradicts the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = tensors.header_length(file.read(LENGTH_BYTES), size)
            return tensors.read_header(file.read(length), size)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read: {exc}") from exc
    except ValueError as exc:
        raise ModelError(f"{path.name}: {exc}") from exc
