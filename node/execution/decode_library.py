"""Compiles ``engine/decode.c`` for this machine with its own GCC, once: ``worker.compiled_decode``.

What loads the library is the worker (``engine/compiled_decode.py``), which may start no compiler itself: its jail.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.durable import replace_file
from node.errors import ExecutionError

_SOURCE: Final = Path(__file__).parent / "engine" / "decode.c"
# For this very processor: the library is used where it was made, and nowhere else.
_FLAGS: Final = ("-std=c11", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_LOADS: Final = (sys.executable, "-P", "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1]).decode")
# 1.2 s here.
COMPILE_S_MAX: Final = 60.0


def compile_decode(folder: Path, *, seconds_max: float = COMPILE_S_MAX) -> Path:
    """Return the library for this processor, compiled into ``folder`` unless it lies there. Blocks.

    ``seconds_max`` bounds each of the programs that this starts. What other compilers and sources had left in the
    folder is removed.

    Raises:
        ExecutionError: ``compiler``: there is none, or it does not compile this.
        OSError: the disk refuses.
    """
    compiler = (os.environ.get("CC") or "cc").split()
    # What the compiler knows of itself and of the processor: another of either makes another library.
    known = _run([*compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull], seconds_max)
    if b"__clang__" in known:
        # Its OpenMP needs shared memory, which a jail has not, and would be a second pool beside torch's threads.
        raise _refused(compiler, "it is Clang")
    source = _SOURCE.read_bytes()
    name = hashlib.sha256(b"\0".join((source, " ".join(_FLAGS).encode(), known))).hexdigest()[:16]
    library = folder / f"decode-{name}.so"

    def check(path: Path) -> None:
        """Load it as a worker will: a file cut off, or a disk without execution, must not cost a model."""
        _run([*_LOADS, str(path)], seconds_max)

    if library.exists():
        try:
            check(library)
            return library
        except ExecutionError:
            library.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "decode.so"
        _run([*compiler, *_FLAGS, "-o", str(made), str(_SOURCE), "-lm"], seconds_max)
        replace_file(library, made.read_bytes(), check=check)
    for other in folder.glob("decode-*.so"):
        if other != library:
            other.unlink(missing_ok=True)
    return library


def _run(command: Sequence[str], seconds_max: float) -> bytes:
    """Return what a program prints. Raises: ExecutionError."""
    try:
        process = subprocess.Popen(  # noqa: S603  the operator's own compiler
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )
    except OSError as exc:
        raise _refused(command, str(exc)) from exc
    try:
        out, said = process.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired as exc:
        # With what it has started: a compiler is several programs.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise _refused(command, f"no end within {seconds_max:g} s") from exc
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        cause = next((line for line in lines if "rror" in line), f"exit status {process.returncode}")
        raise _refused(command, cause)
    return out


def _refused(command: Sequence[str], cause: str) -> ExecutionError:
    return ExecutionError(
        f"expected a GCC with OpenMP that makes a library this machine loads, {command[0]!r} gave: {cause}; "
        "install build-essential, name a GCC by the environment variable CC, or set worker.compiled_decode to "
        "false",
        code="compiler",
    )
