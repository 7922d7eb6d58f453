"""What a model is: its files by hash. The hash of the canonical manifest is the model's id on the network.

Making and reading manifests lives here; files on disk are ``store.py``'s business. A manifest may come from
another peer, so reading is strict and bounded.
"""

import re
from hashlib import sha256
from typing import Annotated, Final

from msgspec import Meta

from protocol import limits
from protocol.encoding import decode_untrusted, encode
from protocol.errors import Reason, RemoteProtocolError
from protocol.schema import Message, to_message_untrusted, to_plain
from protocol.units import ModelId

VERSION: Final = 1
MANIFEST_BYTES_MAX: Final = 64 * 1024
FILES_MAX: Final = 128

# Nothing that can carry code: no pickle, no Python, no jit archive. Weights may be cut into numbered parts.
ALLOWED_NAMES: Final = frozenset(
    {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",  # a template is run in a sandbox that can change nothing
    }
)
REQUIRED_NAMES: Final = frozenset({"config.json", "tokenizer.json"})
_WEIGHTS_PART: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_MODEL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ModelFile(Message, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    size: Annotated[int, Meta(ge=0, le=1 << 53)]
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Manifest(Message, frozen=True, kw_only=True):
    """Everything that decides what a model answers, and where it came from."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    name: Annotated[str, Meta(pattern=f"^{_MODEL_NAME.pattern}$")]
    task: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    architecture: Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
    context_tokens: Annotated[int, Meta(ge=1, le=limits.TOKENS_MAX)]
    source: Annotated[str, Meta(max_length=limits.TEXT_BYTES_MAX)] = ""
    """Where the weights were taken from and under which licence, for people."""
    files: Annotated[tuple[ModelFile, ...], Meta(min_length=1, max_length=FILES_MAX)]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if names != sorted(set(names)):
            raise ValueError("expected files sorted by name, each once")
        if refused := [name for name in names if not is_allowed_name(name)]:
            raise ValueError(f"expected only weights, configuration and tokenizer, got {refused[0]!r}")


def is_weights_name(name: str) -> bool:
    """Tell whether a file of this name holds weights."""
    return name == "model.safetensors" or _WEIGHTS_PART.fullmatch(name) is not None


def is_allowed_name(name: str) -> bool:
    """Tell whether a file of this name may be part of a model."""
    return name in ALLOWED_NAMES or is_weights_name(name)


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
