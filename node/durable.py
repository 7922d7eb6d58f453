"""Small files, written whole or not at all, and there after a power cut.

Bytes go to a file beside, to the disk, and then to their name: a crash leaves the old file or the new one.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600
USUAL: Final = 0o666
"""Less what the process's umask takes, as for any new file."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What file systems without hard links say, such as vfat on a stick."""
_NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP})
"""What file systems say that have no folders to sync: they keep names by themselves, or not at all."""


class NotSyncedError(OSError):
    """The new bytes stand under their name, and others see them; a power cut may still take them back."""


def replace_file(
    path: Path, data: bytes, *, mode: int = PRIVATE, check: Callable[[Path], object] = lambda _fresh: None
) -> None:
    """Write ``data`` in the place of ``path``, or of nothing.

    ``check`` is given the new file before it takes the old one's place, and refuses it by raising.

    Raises:
        NotSyncedError: it is done, but may not survive a power cut.
        OSError: the disk refuses; what was there before is still there.
    """
    with _named(path), _written_beside(path, data, mode) as fresh:
        check(fresh)
        fresh.replace(path)
    _confirm(path)


def create_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file that only its owner can read.

    Raises:
        FileExistsError: there is one, which stays as it is.
        NotSyncedError: it is done, but may not survive a power cut.
        OSError: the disk refuses.
    """
    with _named(path), _written_beside(path, data, PRIVATE) as fresh:
        try:
            # A link, unlike a rename, never replaces what somebody else just made.
            os.link(fresh, path)
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            _write_new(path, data, PRIVATE)
    _confirm(path)


def sync_folder(path: Path) -> None:
    """Wait until a folder's names survive a power cut, where its file system can say so. Raises: OSError."""
    try:
        sync(path)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise


def sync(path: Path) -> None:
    """Wait until a file's bytes survive a power cut. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _confirm(path: Path) -> None:
    """Wait until the file's name survives a power cut. Raises: NotSyncedError."""
    try:
        sync_folder(path.parent)
    except OSError as exc:
        what = f"the new file is there, but the disk did not confirm its name ({exc.strerror})"
        raise NotSyncedError(exc.errno, what, str(path)) from exc


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Write a file of another name in the same folder, which is gone again behind the block."""
    # Other threads and processes may write the same file at the same time.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.unlink(missing_ok=True)
        _write_new(fresh, data, mode)
        yield fresh
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, and wait for the disk; one that fails half-way is gone again."""
    descriptor = os.open(path, _NEW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name ``path`` in errors: users know nothing of the file beside it."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None:
            raise
        # The class follows from the number: FileExistsError, PermissionError …
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
