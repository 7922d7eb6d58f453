"""Where an import finds its files: a plain folder, or the cache in which the Hugging Face tools keep a model.

That cache is ``models--org--name/`` with ``blobs/`` named by hash, ``refs/main``, and ``snapshots/<revision>/``
of links into the blobs. Links are followed inside the folder they belong to and nowhere else: a folder that
somebody sent must not make us copy the owner's keys into a model that is then offered to everybody.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from node.errors import ModelError
from node.models.manifest import FILES_MAX, is_allowed_name

_CACHED: Final = re.compile(r"models--(?:([A-Za-z0-9._-]+?)--)?([A-Za-z0-9._-]+)")
_REVISION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LARGE_BLOB: Final = re.compile(r"[0-9a-f]{64}")
# A folder with more entries than this is no model's.
_ENTRIES_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files of one model as found, before any was opened."""

    folder: Path
    root: Path
    """No link may lead out of it."""
    label: str
    """For people: where this came from."""

    @property
    def name(self) -> str:
        """What the model is called unless somebody says otherwise."""
        cached = _CACHED.fullmatch(self.root.name)
        return (cached[2] if cached else self.folder.name).lower()

    def files(self) -> dict[str, Path]:
        """Return the files that belong to a model, by name, links resolved; others are left behind.

        Raises:
            ModelError: a link leads out of the root, or the folder is none.
        """
        found: dict[str, Path] = {}
        try:
            entries = sorted(_bounded(self.folder))
            root = self.root.resolve(strict=True)
            for entry in entries:
                if not is_allowed_name(entry.name):
                    continue
                path = entry.resolve(strict=True)
                if not path.is_relative_to(root):
                    raise ModelError(f"{entry.name}: expected a file inside {self.root}, got a link to {path}")
                found[entry.name] = path
        except (OSError, RuntimeError) as exc:  # a link to itself is a RuntimeError
            raise ModelError(f"{self.folder}: cannot be read: {exc}") from exc
        if len(found) > FILES_MAX:
            raise ModelError(f"{self.folder}: expected at most {FILES_MAX} files, got {len(found)}")
        return found


def find_source(path: Path) -> Source:
    """Return what ``path`` holds: a plain folder, a cached model (its ``main``), or one snapshot of it.

    Raises:
        ModelError: a cached model whose revision cannot be told.
    """
    if not path.is_dir():
        raise ModelError(f"expected a folder with config.json, tokenizer.json and *.safetensors, got {path}")
    path = path.absolute()
    if path.parent.name == "snapshots" and _CACHED.fullmatch(path.parent.parent.name):
        return _snapshot(path.parent.parent, path.name)
    if _CACHED.fullmatch(path.name) and (path / "snapshots").is_dir():
        return _snapshot(path, _main_revision(path))
    return Source(folder=path, root=path, label=f"folder {path.name}")


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Open a resolved path for reading, if it still is a plain file: no link, pipe or device.

    Raises:
        ModelError: it is not, or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read: {exc}") from exc
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ModelError(f"{path.name}: expected a plain file")
        yield file


def promised_sha256(path: Path) -> bytes | None:
    """Return the hash that a cached blob's name promises; small blobs are named by git's hash instead."""
    if path.parent.name == "blobs" and _LARGE_BLOB.fullmatch(path.name):
        return bytes.fromhex(path.name)
    return None


def _bounded(folder: Path) -> Iterator[Path]:
    for count, entry in enumerate(folder.iterdir()):
        if count >= _ENTRIES_MAX:
            raise ModelError(f"{folder}: expected a model's folder, got one of more than {_ENTRIES_MAX} entries")
        yield entry


def _snapshot(cached: Path, revision: str) -> Source:
    match = _CACHED.fullmatch(cached.name)
    assert match is not None
    name = "/".join(part for part in match.groups() if part)
    return Source(
        folder=cached / "snapshots" / revision, root=cached, label=f"huggingface {name} at {revision[:40]}"
    )


def _main_revision(cached: Path) -> str:
    try:
        with (cached / "refs" / "main").open("rb") as file:
            revision = file.read(65).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    snapshots = [path.name for path in sorted(_bounded(cached / "snapshots"))]
    # The text comes from a file: it is looked up among the names that are there.
    if _REVISION.fullmatch(revision) and revision in snapshots:
        return revision
    if len(snapshots) == 1:
        return snapshots[0]
    raise ModelError(
        f"{cached.name}: expected refs/main or one snapshot, got {len(snapshots)}; name one of them: "
        f"{', '.join(str(cached / 'snapshots' / name) for name in snapshots[:3])}"
    )
