"""Checks the JSON files of a model before anything is built of them.

A file of 64 MB can ask for gigabytes of objects, and one of 100 KB for a stack as deep as it is long. Here the
size is bounded first, then how many values there are, then the text is walked without making any of them.
"""

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from node.errors import ModelError
from protocol import limits

# The largest known tokenizers, of 262 000 tokens and 580 000 merges, have 33 MB and 2 million commas.
BYTES_MAX: Final = {"tokenizer.json": 64 << 20, "model.safetensors.index.json": 16 << 20}
BYTES_MAX_ELSE: Final = 1 << 20
VALUES_MAX: Final = {"tokenizer.json": 4 << 20}
VALUES_MAX_ELSE: Final = 128 << 10

_outermost = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Of ``config.json``, what a manifest says."""

    model_type: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    max_position_embeddings: Annotated[int, Meta(ge=1, le=limits.TOKENS_MAX)]


class _WeightsIndex(msgspec.Struct, frozen=True, kw_only=True):
    weight_map: dict[str, str]


_config = msgspec.json.Decoder(ModelConfig)
_index = msgspec.json.Decoder(_WeightsIndex)


def read_bounded(path: Path) -> bytes:
    """Return a small file of a model.

    Raises:
        ModelError: it is larger than a file of its name may be, or cannot be read.
    """
    bound = BYTES_MAX.get(path.name, BYTES_MAX_ELSE)
    try:
        with path.open("rb") as file:
            data = file.read(bound + 1)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read: {exc}") from exc
    if len(data) > bound:
        raise ModelError(f"{path.name}: expected at most {bound} bytes, got {path.stat().st_size}")
    return data


def check_json(path: Path) -> None:
    """Check that ``path`` is one JSON object of bounded size, depth and number of values.

    Raises:
        ModelError: it is not.
    """
    data = read_bounded(path)
    bound = VALUES_MAX.get(path.name, VALUES_MAX_ELSE)
    # Each value but the first of its container follows a comma; one in a text only counts against its own file.
    if (commas := data.count(b",")) > bound:
        raise ModelError(f"{path.name}: expected at most {bound} values, got {commas} or more")
    try:
        # Walks every value and makes none but the names of the outermost; it bounds the depth itself.
        _outermost.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise ModelError(f"{path.name}: expected a JSON object: {exc}") from exc


def read_config(path: Path) -> ModelConfig:
    """Return what a manifest needs of ``config.json``. Raises: ModelError."""
    try:
        return _config.decode(read_bounded(path))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise ModelError(
            f"{path.name}: expected a JSON object with model_type and max_position_embeddings: {exc}"
        ) from exc


def read_weights_index(path: Path) -> dict[str, str]:
    """Return which tensor the index places in which file. Raises: ModelError."""
    try:
        return _index.decode(read_bounded(path)).weight_map
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise ModelError(f"{path.name}: expected a weight_map of tensors to files: {exc}") from exc
