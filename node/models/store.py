"""The models on disk, each in a folder named by its id: ``<root>/<hex id>/`` with a manifest beside the files.

Importing copies into a temporary folder and renames it, so that a model is there whole or not at all; the id
is the hash of the manifest, so that importing twice makes one model. Loading is ``node/execution/``'s business.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError
from node.models.gguf_convert import convert_gguf
from node.models.manifest import (
    REQUIRED_NAMES,
    Manifest,
    ModelFile,
    decode_manifest_untrusted,
    encode_manifest,
    is_allowed_name,
    is_model_name,
    is_weights_name,
    manifest_id,
)
from node.models.safetensors_check import read_header
from protocol.errors import ProtocolError
from protocol.task import GENERATE
from protocol.units import ModelId

log = logging.getLogger(__name__)

MANIFEST_NAME: Final = "manifest.msgpack"
HEX_DIGITS_MIN: Final = 8
_JSON_BYTES_MAX: Final = {"tokenizer.json": 64 << 20}
_JSON_BYTES_MAX_ELSE: Final = 1 << 20
_COPY_BYTES: Final = 4 << 20
_INCOMING: Final = ".incoming-"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model in the store; its weights' headers were checked when it was listed."""

    model_id: ModelId
    manifest: Manifest
    folder: Path
    parameters: int
    """Numbers in all weight tensors, from their headers."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def task(self) -> str:
        return self.manifest.task

    def verify(self) -> None:
        """Hash every file: about 0.7 s for each gigabyte.

        Raises:
            ModelError: a file is not what the manifest says.
        """
        for file in self.manifest.files:
            found = _describe(self.folder / file.name)
            if found != file:
                raise ModelError(
                    f"{self.name}: {file.name}: expected sha256 {file.sha256.hex()} over {file.size} bytes, "
                    f"got {found.sha256.hex()} over {found.size}; import the model again"
                )


class ModelStore:
    """The models under one folder. Every method blocks on the disk: call it from a thread when in trio."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> tuple[StoredModel, ...]:
        """Return what can be served, by name; a folder that is damaged is left out and logged."""
        found = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                found.append(_open(folder))
            except ModelError as exc:
                log.warning("model left out", extra={"folder": folder.name, "cause": str(exc)})
        return tuple(sorted(found, key=lambda model: (model.name, model.model_id)))

    def find(self, name_or_hex: str) -> StoredModel:
        """Return the model of this name, or whose id starts with these hex digits (8 or more).

        Raises:
            ModelError: there is none, or more than one.
        """
        wanted = name_or_hex.lower()
        models = self.models()
        hits = [model for model in models if model.name == wanted]
        if not hits and len(wanted) >= HEX_DIGITS_MIN:
            hits = [model for model in models if model.model_id.hex().startswith(wanted)]
        if len(hits) != 1:
            names = ", ".join(model.name for model in models) or "nothing"
            raise ModelError(f"expected one model called {name_or_hex!r}, got {len(hits)}; the store has {names}")
        return hits[0]

    def add_folder(self, path: Path, name: str, *, source: str = "") -> StoredModel:
        """Import weights in safetensors with their configuration and tokenizer; other files stay behind.

        Raises:
            ModelError: a file is missing or refused, or another model has this name.
        """
        with self._importing(name) as incoming:
            _copy_allowed(path, incoming)
            return self._admit(incoming, name, source or f"folder {path.name}")

    def add_gguf(self, path: Path, name: str, *, source: str = "") -> StoredModel:
        """Convert a GGUF file of the Llama family to safetensors and import it.

        Raises:
            ModelError: the file cannot be converted, or another model has this name.
        """
        with self._importing(name) as incoming:
            convert_gguf(path, incoming)
            return self._admit(incoming, name, source or f"gguf {path.name}")

    def verify(self, model: StoredModel) -> None:
        """Hash every file of ``model``; see ``StoredModel.verify``."""
        model.verify()

    def remove(self, model: StoredModel) -> None:
        """Delete ``model`` from the disk; renamed first, so that no half of it is ever listed."""
        with self._locked():
            doomed = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            os.rename(model.folder, doomed / model.folder.name)
            shutil.rmtree(doomed)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's lock between processes; what a dead import left behind is swept meanwhile."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self.root.glob(f"{_INCOMING}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield

    @contextlib.contextmanager
    def _importing(self, name: str) -> Iterator[Path]:
        if not is_model_name(name):
            raise ModelError(f"expected a model name of a-z, 0-9, '.', '_' and '-', at most 64, got {name!r}")
        with self._locked():
            incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            try:
                yield incoming
            except OSError as exc:
                raise ModelError(f"{name}: cannot be imported: {exc}") from exc
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def _admit(self, incoming: Path, name: str, source: str) -> StoredModel:
        """Check, describe and rename; the caller holds the lock."""
        manifest = _describe_folder(incoming, name, source)
        data = encode_manifest(manifest)
        folder = self.root / manifest_id(data).hex()
        if folder.is_dir():
            return _open(folder)
        if any(model.name == name for model in self.models()):
            raise ModelError(f"another model is called {name!r}; remove it first, or choose another name")
        (incoming / MANIFEST_NAME).write_bytes(data)
        for path in incoming.iterdir():
            # A mapped file that someone edits would change a model while it answers.
            path.chmod(0o444)
        incoming.chmod(0o755)
        os.rename(incoming, folder)
        model = _open(folder)
        log.info("model imported", extra={"model": name, "model_id": model.model_id.hex()})
        return model


def _open(folder: Path) -> StoredModel:
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
        manifest = decode_manifest_untrusted(data)
    except (OSError, ProtocolError) as exc:
        raise ModelError(f"{folder.name}: no readable manifest: {exc}") from exc
    model_id = manifest_id(data)
    if folder.name != model_id.hex():
        raise ModelError(f"{folder.name}: expected the folder of model {model_id.hex()}")
    parameters = 0
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise ModelError(f"{manifest.name}: {file.name}: expected a file of {file.size} bytes")
        if is_weights_name(file.name):
            parameters += sum(tensor.elements for tensor in read_header(path).values())
    return StoredModel(model_id=model_id, manifest=manifest, folder=folder, parameters=parameters)


def _copy_allowed(path: Path, incoming: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"expected a folder with config.json, tokenizer.json and *.safetensors, got {path}")
    for file in sorted(path.iterdir()):
        if not is_allowed_name(file.name) or not file.is_file():
            continue
        if is_weights_name(file.name):
            read_header(file)
        shutil.copyfile(file, incoming / file.name)


def _describe_folder(folder: Path, name: str, source: str) -> Manifest:
    paths = sorted(folder.iterdir())
    names = {path.name for path in paths}
    if missing := sorted(REQUIRED_NAMES - names):
        raise ModelError(f"{name}: expected {', '.join(missing)} beside the weights")
    if not any(is_weights_name(found) for found in names):
        raise ModelError(f"{name}: expected weights in model.safetensors; other formats are not loaded")
    for path in paths:
        if is_weights_name(path.name):
            read_header(path)
        else:
            _check_text(path)
    config = json.loads((folder / "config.json").read_bytes())
    try:
        return Manifest(
            name=name,
            task=GENERATE,
            architecture=str(config["model_type"]),
            context_tokens=int(config["max_position_embeddings"]),
            source=source,
            files=tuple(_describe(path) for path in paths),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"{name}: config.json: expected model_type and max_position_embeddings: {exc}") from exc


def _check_text(path: Path) -> None:
    bound = _JSON_BYTES_MAX.get(path.name, _JSON_BYTES_MAX_ELSE)
    if path.stat().st_size > bound:
        raise ModelError(f"{path.name}: expected at most {bound} bytes, got {path.stat().st_size}")
    if path.suffix != ".json":
        return
    try:
        value: Any = json.loads(path.read_bytes())  # Any: only its outermost type is looked at
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path.name}: expected JSON, got {type(exc).__name__}") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{path.name}: expected a JSON object, got {type(value).__name__}")


def _describe(path: Path) -> ModelFile:
    digest, size = sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_COPY_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read: {exc}") from exc
    return ModelFile(name=path.name, size=size, sha256=digest.digest())
