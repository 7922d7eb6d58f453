"""A bound on a worker's own memory that the kernel holds: beyond it an allocation fails, and nobody else's does.

On the CPU it is ``RLIMIT_DATA``: heap and private writable mappings, touched or not. (``RLIMIT_AS`` would count
what torch merely reserves.) A CUDA device is bounded by torch itself.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bounded_memory(bytes_max: int, weights: Path) -> Iterator[None]:
    """Let this process take ``bytes_max`` from here on, 0: whatever there is.

    Inside, while the weights in that folder are copied, their files may lie in memory beside the copy: pages of
    a file, which the kernel takes back when it needs them.
    """
    if not bytes_max:
        yield
        return
    files = sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    _bound(bytes_max + files)
    try:
        yield
    finally:
        _bound(bytes_max)


def _bound(bytes_max: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
