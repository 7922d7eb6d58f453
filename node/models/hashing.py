"""Hashes a model's files: the whole by SHA-256, and each chunk for transfers that go on where they ended.

SHA-256 reads 1.5 GB/s on a processor with SHA instructions, faster than most disks.
"""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO

from node.errors import ModelError
from node.models.manifest import CHUNK_BYTES, ModelFile
from node.models.sources import open_regular, promised_sha256


def hash_file(name: str, file: IO[bytes], pass_on: Callable[[bytes], object] = lambda _chunk: None) -> ModelFile:
    """Read ``file`` to its end and describe it; every chunk goes to ``pass_on`` as well.

    Raises:
        ModelError: it cannot be read. What ``pass_on`` raises is passed through.
    """
    whole, chunks, size = sha256(), [], 0
    while chunk := _read(name, file):
        whole.update(chunk)
        chunks.append(sha256(chunk).digest())
        size += len(chunk)
        pass_on(chunk)
    return ModelFile(name=name, size=size, sha256=whole.digest(), chunks=b"".join(chunks))


def hash_written(path: Path) -> ModelFile:
    """Describe a file that we have written, and bring it to the disk. Raises: ModelError."""
    with open_regular(path) as file:
        described = hash_file(path.name, file)
        os.fsync(file.fileno())
    return described


def copy_hashed(source: Path, target: Path) -> ModelFile:
    """Copy a file to the disk and describe the copy.

    Raises:
        ModelError: it cannot be read or written, or is not what a cache's name for it promises.
    """
    with open_regular(source) as reading:
        try:
            with target.open("xb") as writing:
                described = hash_file(target.name, reading, writing.write)
                writing.flush()
                os.fsync(writing.fileno())
        except OSError as exc:
            raise ModelError(f"{target.name}: cannot be written: {exc}") from exc
    promised = promised_sha256(source)
    if promised is not None and promised != described.sha256:
        raise ModelError(
            f"{target.name}: expected sha256 {promised.hex()} as the cache names it, "
            f"got {described.sha256.hex()}; download it again"
        )
    return described


def _read(name: str, file: IO[bytes]) -> bytes:
    try:
        return file.read(CHUNK_BYTES)
    except OSError as exc:
        raise ModelError(f"{name}: cannot be read: {exc}") from exc
