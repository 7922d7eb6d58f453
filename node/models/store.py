"""The models on disk, each in a folder named by its id: ``<root>/<hex id>/`` with a manifest beside the files.

Importing copies into a temporary folder and renames it, so that a model is there whole or not at all; the id
is the hash of the manifest, so that importing twice makes one model. Loading is ``node/execution/``'s business.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from node.durable import USUAL, replace_file, sync_folder
from node.errors import ModelError
from node.model_names import begins_id
from node.models.eviction import Candidate, Decision, freed_bytes, plan_eviction
from node.models.gguf_check import check_gguf
from node.models.gguf_convert import convert_gguf
from node.models.hashing import copy_hashed, hash_written
from node.models.holding import held_alone, is_held
from node.models.json_check import check_json, read_bounded, read_config
from node.models.manifest import (
    Manifest,
    ModelFile,
    encode_manifest,
    is_model_name,
    is_weights_name,
    manifest_id,
    required_names,
)
from node.models.safetensors_check import read_header
from node.models.sharded import check_weights
from node.models.sources import find_source
from node.models.stored import (
    ABOUT_NAME,
    MANIFEST_NAME,
    About,
    StoredModel,
    open_model,
    write_about,
)
from protocol.errors import LocalProtocolError
from protocol.task import GENERATE

log = logging.getLogger(__name__)

_INCOMING: Final = ".incoming-"


def log_decision(decision: Decision) -> None:
    """Tell the log what became of a model when room was made."""
    log.info(
        "model removed" if decision.removed else "model kept",
        extra={"model": decision.name, "model_id": decision.model_id.hex(), "cause": decision.reason},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Import:
    """One import under way, in a folder that nobody lists."""

    name: str
    source: str
    task: str
    incoming: Path


class ModelStore:
    """The models under one folder. Every method blocks on the disk: call it from a thread when in trio.

    Args:
        quota_bytes: how much the models may take together; 0 sets no bound.
        on_decision: told what becomes of every model whenever room is made.
    """

    def __init__(
        self, root: Path, *, quota_bytes: int = 0, on_decision: Callable[[Decision], None] = log_decision
    ) -> None:
        self.root, self.quota_bytes = root, quota_bytes
        self._on_decision = on_decision

    def models(self) -> tuple[StoredModel, ...]:
        """Return what can be served, by name; a folder that is damaged is left out and logged."""
        found = []
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                found.append(open_model(folder))
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
        if not hits:
            hits = [model for model in models if begins_id(wanted, model.model_id)]
        if len(hits) != 1:
            names = ", ".join(model.name for model in models) or "nothing"
            raise ModelError(f"expected one model called {name_or_hex!r}, got {len(hits)}; the store has {names}")
        return hits[0]

    def add_folder(
        self, path: Path, name: str | None = None, *, source: str = "", task: str = GENERATE
    ) -> StoredModel:
        """Import weights in safetensors with their configuration and tokenizer; other files stay behind.

        ``path`` is a plain folder, or one in the cache of the Hugging Face tools (see ``sources.py``). A model
        whose files are here already is returned as it is called here.

        Raises:
            ModelError: a file is missing or refused, another model has this name, or there is no room for it.
        """
        found = find_source(path)
        with self._importing(found.name if name is None else name, source or found.label, task) as importing:
            files = found.files()
            _refuse_weights(files, task)
            self._refuse_without_room(sum(file.stat().st_size for file in files.values()), importing.name)
            # The small ones first: what is refused is refused before gigabytes are copied.
            ordered = sorted(files.items(), key=lambda item: (is_weights_name(item[0]), item[0]))
            described = []
            for file_name, file in ordered:
                described.append(copy_hashed(file, importing.incoming / file_name))
                _check_text(importing.incoming / file_name)
            return self._admit(importing, described)

    def add_gguf(self, path: Path, name: str | None = None, *, source: str = "") -> StoredModel:
        """Convert a GGUF file of the Llama family to safetensors and import it.

        Raises:
            ModelError: the file cannot be converted, another model has this name, or there is no room for it.
        """
        called = path.stem.lower() if name is None else name
        with self._importing(called, source or f"gguf {path.name}", GENERATE) as importing:
            self._refuse_without_room(check_gguf(path), importing.name)
            convert_gguf(path, importing.incoming)
            return self._admit(importing, [hash_written(file) for file in importing.incoming.iterdir()])

    def verify(self, model: StoredModel) -> None:
        """Hash every file of ``model``; see ``StoredModel.verify``."""
        model.verify()

    def pin(self, model: StoredModel, pinned: bool) -> StoredModel:
        """Keep ``model`` when room is made, or let it go again."""
        with self._locked():
            about = msgspec.structs.replace(model.about, pinned=pinned)
            write_about(model.folder, about)
            return open_model(model.folder)

    def remove(self, model: StoredModel) -> None:
        """Delete ``model`` from the disk; renamed first, so that no half of it is ever listed.

        Raises:
            ModelKeptError: it is pinned, or a daemon on this machine serves it.
        """
        with self._locked():
            # Read again: somebody may have pinned it since it was listed.
            open_model(model.folder).refuse_pinned()
            self._delete(model.folder, model.name)

    def plan_room(self, needed_bytes: int = 0) -> tuple[Decision, ...]:
        """Return what would become of every model if so many bytes were to come; nothing without a quota."""
        if not self.quota_bytes:
            return ()
        models = self.models()
        candidates = [
            Candidate(
                model_id=model.model_id,
                name=model.name,
                size_bytes=model.manifest.size_bytes,
                used_at_s=model.used_at_s,
                pinned=model.about.pinned,
                served=is_held(model.folder),
            )
            for model in models
        ]
        taken = sum(candidate.size_bytes for candidate in candidates)
        return plan_eviction(candidates, taken + needed_bytes - self.quota_bytes)

    def make_room(self) -> tuple[Decision, ...]:
        """Remove what the quota does not allow for, and return what became of every model."""
        with self._locked():
            decisions = self.plan_room()
            self._carry_out(decisions)
            return decisions

    def _refuse_without_room(self, needed_bytes: int, name: str) -> None:
        if not self.quota_bytes:
            return
        decisions = self.plan_room(needed_bytes)
        kept = sum(decision.size_bytes for decision in decisions if not decision.removed)
        if kept + needed_bytes <= self.quota_bytes:
            return
        told = "; ".join(f"{decision.name}: {decision.reason}" for decision in decisions if not decision.removed)
        raise ModelError(
            f"{name}: expected at most {max(0, self.quota_bytes - kept)} bytes, got {needed_bytes}: "
            f"models.quota_gb allows {self.quota_bytes}, {kept} of them stay taken ({told or 'nothing'}) and "
            f"{freed_bytes(decisions)} could be freed; raise models.quota_gb, or unpin or unload a model"
        )

    def _carry_out(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            if decision.removed:
                self._delete(self.root / decision.model_id.hex(), decision.name)
            self._on_decision(decision)

    def _delete(self, folder: Path, name: str) -> None:
        """The caller holds the lock. Raises: ModelKeptError."""
        with held_alone(folder, name):
            doomed = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            os.rename(folder, doomed / folder.name)
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
    def _importing(self, name: str, source: str, task: str) -> Iterator[_Import]:
        if not is_model_name(name):
            raise ModelError(f"expected a model name of a-z, 0-9, '.', '_' and '-', at most 64, got {name!r}")
        with self._locked():
            incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self.root))
            try:
                yield _Import(name=name, source=source[:256], task=task, incoming=incoming)
            except OSError as exc:
                raise ModelError(f"{name}: cannot be imported: {exc}") from exc
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def _admit(self, importing: _Import, files: list[ModelFile]) -> StoredModel:
        """Check, describe and rename; the caller holds the lock."""
        incoming, name = importing.incoming, importing.name
        manifest = _describe(incoming, importing.task, files)
        data = encode_manifest(manifest)
        folder = self.root / manifest_id(data).hex()
        if folder.exists():
            with contextlib.suppress(ModelError):
                known = open_model(folder)
                known.verify()
                return known
            self._delete(folder, name)  # what is damaged is replaced by what has just been checked
        if any(model.name == name for model in self.models()):
            raise ModelError(f"another model is called {name!r}; remove it first, or choose another name")
        self._refuse_without_room(manifest.size_bytes, name)
        replace_file(incoming / MANIFEST_NAME, data, mode=USUAL)
        write_about(incoming, About(name=name, source=importing.source))
        _make_read_only(incoming)
        self._carry_out(self.plan_room(manifest.size_bytes))
        os.rename(incoming, folder)
        sync_folder(self.root)
        model = open_model(folder)
        log.info("model imported", extra={"model": name, "model_id": model.model_id.hex()})
        return model


def _refuse_weights(files: Mapping[str, Path], task: str) -> None:
    """Refuse weights by their headers where they lie."""
    if missing := sorted(required_names(task) - set(files)):
        raise ModelError(f"expected {', '.join(missing)} beside the weights")
    for name, path in files.items():
        if is_weights_name(name):
            try:
                read_header(path)
            except ModelError as exc:
                # A cache calls its files by their hash.
                raise exc if path.name == name else ModelError(f"{name}: {exc}") from exc


def _check_text(path: Path) -> None:
    if path.suffix == ".json":
        check_json(path)
    elif not is_weights_name(path.name):
        read_bounded(path)


def _describe(folder: Path, task: str, files: list[ModelFile]) -> Manifest:
    if missing := sorted(required_names(task) - {file.name for file in files}):
        raise ModelError(f"expected {', '.join(missing)} beside the weights")
    check_weights(folder)
    config = read_config(folder / "config.json")
    try:
        return Manifest(
            task=task,
            architecture=config.model_type,
            context_tokens=config.max_position_embeddings,
            files=tuple(sorted(files, key=lambda file: file.name)),
        )
    except (ValueError, LocalProtocolError) as exc:
        raise ModelError(f"the files make no manifest: {exc}") from exc


def _make_read_only(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ABOUT_NAME:
            # A mapped file that someone edits would change a model while it answers.
            path.chmod(0o444)
    folder.chmod(0o755)
    sync_folder(folder)
