"""Weights cut into numbered parts: every part is there, and each tensor in one part, where the index says.

The index is for libraries that load by it; the parts themselves are what is believed.
"""

from collections.abc import Mapping
from pathlib import Path

from node.errors import ModelError
from node.models.json_check import read_weights_index
from node.models.manifest import INDEX_NAME, WEIGHTS_NAME, is_weights_name, part_of
from node.models.safetensors_check import Tensor, read_header


def check_weights(folder: Path) -> int:
    """Check the weights in ``folder``, headers and parts; return how many numbers they hold.

    Raises:
        ModelError: a part is missing or refused, a tensor is there twice, or the index says otherwise.
    """
    names = sorted(path.name for path in folder.iterdir() if is_weights_name(path.name))
    _check_names(names)
    headers = {name: read_header(folder / name) for name in names}
    place = _places(headers)
    index = folder / INDEX_NAME
    if index.exists():
        _check_index(read_weights_index(index), place)
    elif len(names) > 1:
        raise ModelError(f"expected {INDEX_NAME} beside {len(names)} parts of weights")
    return sum(tensor.elements for header in headers.values() for tensor in header.values())


def _check_names(names: list[str]) -> None:
    if not names:
        raise ModelError(f"expected weights in {WEIGHTS_NAME}; other formats are not loaded")
    if names == [WEIGHTS_NAME]:
        return
    parts = [part for name in names if (part := part_of(name)) is not None]
    if len(parts) != len(names):
        raise ModelError(f"expected {WEIGHTS_NAME} or numbered parts, got both")
    count = parts[0][1]
    expected = [(number, count) for number in range(1, len(parts) + 1)]
    if parts != expected or count != len(parts):
        raise ModelError(f"expected all {count} parts of the weights, got {', '.join(names[:8])}")


def _places(headers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    place: dict[str, str] = {}
    for name, header in headers.items():
        if twice := next((tensor for tensor in header if tensor in place), None):
            raise ModelError(f"{name}: tensor {twice!r} is in {place[twice]} as well")
        place |= dict.fromkeys(header, name)
    return place


def _check_index(said: Mapping[str, str], place: Mapping[str, str]) -> None:
    for tensor in sorted(said.keys() | place.keys()):
        if said.get(tensor) != place.get(tensor):
            raise ModelError(
                f"{INDEX_NAME}: tensor {tensor!r}: expected in {place.get(tensor, 'no part')}, "
                f"got {said.get(tensor, 'no entry')}"
            )
