"""Small files, written whole or not at all, and there after a power cut.

Bytes go to a file beside, to the disk, and then to their name: a crash leaves the old file or the new one.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600
USUAL: Final = 0o666
"""Less what the process's umask takes, as for any new file."""


def replace_file(
    path: Path, data: bytes, *, mode: int = PRIVATE, check: Callable[[Path], object] = lambda _fresh: None
) -> None:
    """Write ``data`` in the place of ``path``, or of nothing.

    ``check`` is given the new file before it takes the old one's place, and refuses it by raising.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    with _written_beside(path, data, mode) as fresh:
        check(fresh)
        fresh.replace(path)
    sync(path.parent)


def create_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file that only its owner can read.

    Raises:
        FileExistsError: there is one, which stays as it is.
        OSError: the disk refuses.
    """
    with _written_beside(path, data, PRIVATE) as fresh:
        # A link, unlike a rename, never replaces what somebody else just made.
        os.link(fresh, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, survive a power cut. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """Write a file of another name in the same folder, which is gone again behind the block."""
    # Other threads and processes may write the same file at the same time.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield fresh
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
