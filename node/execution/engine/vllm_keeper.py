"""``python -m node.execution.engine.vllm_keeper <folder> <parent pid> <command...>``: runs a server and ends it.

vLLM is several processes, and those behind its HTTP server outlive a SIGKILL of it. This one is the head of their
process group, dies with the worker that started it, and takes the group and the socket's folder along. It loads
nothing but the standard library.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Run the command until it ends or the parent does; nothing of it is left then."""
    folder, parent, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

    def end(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        end()
    try:
        status = subprocess.call(command)  # noqa: S603  the operator's own interpreter
        sys.stderr.write(f"it ended with status {status}\n")
    except OSError as exc:
        sys.stderr.write(f"{exc}\n")
    end()


if __name__ == "__main__":
    main()
