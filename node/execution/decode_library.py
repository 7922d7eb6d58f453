"""Compiles ``engine/decode.c`` for this machine with its own C compiler, once: ``worker.compiled_decode``.

What loads the library is the worker (``engine/compiled_decode.py``), which may start no compiler itself: its jail.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

import trio

from node.errors import ExecutionError

_SOURCE: Final = Path(__file__).parent / "engine" / "decode.c"
# For this very processor: the library is used where it was made, and nowhere else.
_FLAGS: Final = ("-std=c11", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
COMPILE_S_MAX: Final = 60.0


async def compile_decode(folder: Path) -> Path:
    """Return the library for this processor, compiled into ``folder`` unless it lies there.

    Raises:
        ExecutionError: ``compiler``: there is none, or it does not compile this.
    """
    source = await trio.to_thread.run_sync(_SOURCE.read_bytes)
    # What the compiler knows of itself and of the processor: another of either makes another library.
    known = await _run(["-march=native", "-dM", "-E", "-x", "c", os.devnull])
    name = hashlib.sha256(b"\0".join((source, " ".join(_FLAGS).encode(), known))).hexdigest()[:16]
    library = folder / f"decode-{name}.so"
    if await trio.Path(library).exists():
        return library
    await trio.Path(folder).mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{library.name}.{os.getpid()}"
    try:
        await _run([*_FLAGS, "-o", str(fresh), str(_SOURCE), "-lm"])
        # Whole or not at all: a daemon that was killed meanwhile leaves no half library under this name.
        await trio.Path(fresh).replace(library)
    finally:
        await trio.Path(fresh).unlink(missing_ok=True)
    return library


async def _run(arguments: list[str]) -> bytes:
    """Return what the compiler prints. Raises: ExecutionError."""
    compiler = os.environ.get("CC") or "cc"
    try:
        with trio.fail_after(COMPILE_S_MAX):
            done = await trio.run_process(
                [*compiler.split(), *arguments], capture_stdout=True, capture_stderr=True, check=False
            )
    except (OSError, trio.TooSlowError) as exc:
        raise _refused(compiler, str(exc) or f"no answer within {COMPILE_S_MAX:.0f} s") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _refused(compiler, next((line for line in said if "error" in line), f"status {done.returncode}"))
    return bytes(done.stdout)


def _refused(compiler: str, cause: str) -> ExecutionError:
    return ExecutionError(
        f"expected a C compiler with OpenMP, such as gcc, {compiler!r} said: {cause}; install one "
        "(build-essential), name it by the environment variable CC, or set worker.compiled_decode to false",
        code="compiler",
    )
