"""What a model is: its files by hash. The hash of the canonical manifest is the model's id on the network.

A manifest holds only what decides an answer, so that everybody who has the same files has the same id; how the
owner calls a model and where it came from stand beside it (``stored.py``). Making and reading manifests lives
here; files on disk do not. A manifest may come from another peer, so reading is strict and bounded.
"""

import re
from hashlib import sha256
from typing import Annotated, Final

from msgspec import Meta

from protocol import limits
from protocol.encoding import decode_untrusted, encode
from protocol.errors import Reason, RemoteProtocolError
from protocol.schema import Message, to_message_untrusted, to_plain
from protocol.tasks.registry import CLASSIFY, VAD
from protocol.units import ModelId

VERSION: Final = 2
# Room for the chunk hashes of 250 GB.
MANIFEST_BYTES_MAX: Final = 2 << 20
FILES_MAX: Final = 128
CHUNK_BYTES: Final = 4 << 20
"""A transfer asks for chunks, checks each as it comes, and goes on after the last good one."""
HASH_BYTES: Final = 32

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
# Nothing that can carry code: no pickle, no Python, no jit archive. Weights may be cut into numbered parts.
ALLOWED_NAMES: Final = frozenset(
    {
        WEIGHTS_NAME,
        INDEX_NAME,
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",  # a template is run in a sandbox that can change nothing
    }
)
_REQUIRED_NAMES: Final = frozenset({"config.json", "tokenizer.json"})
_WITHOUT_TEXT: Final = frozenset({CLASSIFY, VAD})
_WEIGHTS_PART: Final = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ModelFile(Message, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    size: Annotated[int, Meta(ge=0, le=1 << 53)]
    sha256: Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    chunks: Annotated[bytes, Meta(max_length=MANIFEST_BYTES_MAX)]
    """The SHA-256 of every ``CHUNK_BYTES`` of the file, one after the other; the last chunk may be shorter."""

    def __post_init__(self) -> None:
        if len(self.chunks) != chunk_count(self.size) * HASH_BYTES:
            raise ValueError(
                f"expected {chunk_count(self.size)} chunk hashes for {self.size} bytes, "
                f"got {len(self.chunks)} bytes of them"
            )


class Manifest(Message, frozen=True, kw_only=True):
    """Everything that decides what a model answers."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    task: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    architecture: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    context_tokens: Annotated[int, Meta(ge=1, le=limits.TOKENS_MAX)]
    files: Annotated[tuple[ModelFile, ...], Meta(min_length=1, max_length=FILES_MAX)]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ValueError("expected files sorted by name, each once")
        if refused := [name for name in names if not is_allowed_name(name)]:
            raise ValueError(f"expected only weights, configuration and tokenizer, got {refused[0]!r}")

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def chunk_count(size: int) -> int:
    """Return in how many chunks a file of ``size`` bytes is hashed."""
    return -(-size // CHUNK_BYTES)


def part_of(name: str) -> tuple[int, int] | None:
    """Return which part of how many a file of this name is, ``None`` when it is no part."""
    match = _WEIGHTS_PART.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


def is_weights_name(name: str) -> bool:
    """Tell whether a file of this name holds weights."""
    return name == WEIGHTS_NAME or part_of(name) is not None


def is_allowed_name(name: str) -> bool:
    """Tell whether a file of this name may be part of a model."""
    return name in ALLOWED_NAMES or is_weights_name(name)


def required_names(task: str) -> frozenset[str]:
    """Return what a model of this task has beside its weights."""
    return _REQUIRED_NAMES - {"tokenizer.json"} if task in _WITHOUT_TEXT else _REQUIRED_NAMES


def is_model_name(name: str) -> bool:
    """Tell whether ``name`` can name a model: it is looked up, never joined to a path."""
    return _MODEL_NAME.fullmatch(name) is not None


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes whose hash is the model id."""
    return encode(to_plain(manifest))


def manifest_id(data: bytes) -> ModelId:
    """Return the id of the model whose manifest has these bytes."""
    return ModelId(sha256(data).digest())


def decode_manifest_untrusted(data: bytes) -> Manifest:
    """Return the manifest in ``data``; raises nothing but ``RemoteProtocolError``."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise RemoteProtocolError(
            f"a manifest of {len(data)} bytes, at most {MANIFEST_BYTES_MAX}", reason=Reason.SIZE
        )
    return to_message_untrusted(decode_untrusted(data, size_max=MANIFEST_BYTES_MAX), Manifest)
