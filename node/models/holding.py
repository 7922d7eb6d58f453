"""Who serves a model, known to every process of this machine: a lock on the model's folder.

A daemon holds what it serves; whoever wants to remove a model asks for it alone. The kernel lets go when a
process ends, however it ends, so nothing is left over that says a model is in use when it is not.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from node.errors import ModelError, ModelKeptError
from node.models.stored import MANIFEST_NAME
from protocol.units import ModelId


class Holds:
    """The models that this process serves. Calls block for a moment on the disk, never on another process."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._fds: dict[ModelId, int] = {}

    def take(self, models: Iterable[ModelId]) -> None:
        """Hold these too, and note that they were used now; one that is gone or being removed is passed over."""
        for model_id in models:
            folder = self._root / model_id.hex()
            # A store of somebody else's may be read-only here: then its models age from their import.
            with contextlib.suppress(OSError):
                os.utime(folder / MANIFEST_NAME)
            if model_id not in self._fds:
                with contextlib.suppress(OSError, ModelKeptError):
                    self._fds[model_id] = _lock(folder, fcntl.LOCK_SH)

    def release(self, model_id: ModelId) -> None:
        """Let a model be removed; does nothing for one that is not held."""
        if (fd := self._fds.pop(model_id, None)) is not None:
            os.close(fd)

    def release_all(self) -> None:
        for model_id in list(self._fds):
            self.release(model_id)


@contextlib.contextmanager
def held_alone(folder: Path, name: str) -> Iterator[None]:
    """Keep every daemon from serving the model in ``folder`` meanwhile.

    Raises:
        ModelKeptError: one serves it now.
        ModelError: the folder is gone.
    """
    try:
        fd = _lock(folder, fcntl.LOCK_EX)
    except ModelKeptError:
        raise ModelKeptError(f"{name}: a daemon on this machine serves it; unload it first") from None
    except OSError as exc:
        raise ModelError(f"{name}: cannot be locked: {exc}") from exc
    try:
        yield
    finally:
        os.close(fd)


def is_held(folder: Path) -> bool:
    """Tell whether a daemon on this machine serves the model in ``folder``."""
    try:
        os.close(_lock(folder, fcntl.LOCK_EX))
    except ModelKeptError:
        return True
    except OSError:
        return False
    return False


def _lock(folder: Path, kind: int) -> int:
    """Return an open folder with a lock on it. Raises: ModelKeptError, OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise ModelKeptError(f"{folder.name}: held by another process") from exc
    except BaseException:
        os.close(fd)
        raise
    return fd
