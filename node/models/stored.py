"""One model on the disk: its folder, what the manifest promises, and the owner's note beside it.

The note (``about.json``: name, source, pin) belongs to this store alone and is in no hash. Which models there
are, and how they come and go, is ``store.py``'s business.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from node.durable import USUAL, replace_file
from node.errors import ModelError, ModelKeptError
from node.models.hashing import hash_file
from node.models.manifest import HASH_BYTES, Manifest, decode_manifest_untrusted, manifest_id
from node.models.sharded import check_weights
from node.models.sources import open_regular
from protocol.errors import ProtocolError
from protocol.units import ModelId

MANIFEST_NAME: Final = "manifest.msgpack"
ABOUT_NAME: Final = "about.json"
_ABOUT_BYTES_MAX: Final = 4096


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of this store says of a model."""

    name: str
    source: Annotated[str, Meta(max_length=512)]
    """Where the weights were taken from and under which licence, for people."""
    pinned: bool = False
    """Never removed to make room."""


_about = msgspec.json.Decoder(About)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model in the store; its weights' headers were checked when it was listed."""

    model_id: ModelId
    manifest: Manifest
    about: About
    folder: Path
    parameters: int
    """Numbers in all weight tensors, from their headers."""
    used_at_s: int
    """Unix seconds: when a daemon last served it, else when it was imported."""

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def task(self) -> str:
        return self.manifest.task

    def refuse_pinned(self) -> None:
        """Raise ModelKeptError when the owner wants this model to stay."""
        if self.about.pinned:
            raise ModelKeptError(f"{self.name}: it is pinned; souk models unpin {self.name} lets it go")

    def verify(self) -> None:
        """Hash every file: about 0.7 s for each gigabyte.

        Raises:
            ModelError: a file is not what the manifest says.
        """
        for file in self.manifest.files:
            with open_regular(self.folder / file.name) as opened:
                found = hash_file(file.name, opened)
            if found != file:
                raise ModelError(
                    f"{self.name}: {file.name}: expected sha256 {file.sha256.hex()} over {file.size} bytes, "
                    f"got {found.sha256.hex()} over {found.size}, different from chunk "
                    f"{_first_difference(file.chunks, found.chunks)} on; import the model again"
                )


def open_model(folder: Path) -> StoredModel:
    """Return the model in ``folder`` once names, sizes and headers are right.

    Raises:
        ModelError: something is missing or contradicts the manifest.
    """
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
        used_at_s = int((folder / MANIFEST_NAME).stat().st_mtime)
        manifest = decode_manifest_untrusted(data)
        about = _about.decode(_read_about(folder))
    except (OSError, ProtocolError, msgspec.MsgspecError, UnicodeError) as exc:
        raise ModelError(f"{folder.name}: no readable manifest: {exc}; import the model again") from exc
    model_id = manifest_id(data)
    if folder.name != model_id.hex():
        raise ModelError(f"{folder.name}: expected the folder of model {model_id.hex()}")
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise ModelError(f"{about.name}: {file.name}: expected a file of {file.size} bytes")
    return StoredModel(
        model_id=model_id,
        manifest=manifest,
        about=about,
        folder=folder,
        parameters=check_weights(folder),
        used_at_s=used_at_s,
    )


def write_about(folder: Path, about: About) -> None:
    """Write the owner's note so that a reader finds the old one or the new one, never half of one."""
    replace_file(folder / ABOUT_NAME, msgspec.json.encode(about), mode=USUAL)


def _read_about(folder: Path) -> bytes:
    with (folder / ABOUT_NAME).open("rb") as file:
        return file.read(_ABOUT_BYTES_MAX)


def _first_difference(expected: bytes, found: bytes) -> int:
    pairs = zip(range(0, len(expected), HASH_BYTES), range(0, len(found), HASH_BYTES), strict=False)
    for number, (mine, theirs) in enumerate(pairs):
        if expected[mine : mine + HASH_BYTES] != found[theirs : theirs + HASH_BYTES]:
            return number
    return min(len(expected), len(found)) // HASH_BYTES
