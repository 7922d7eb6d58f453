"""vLLM's OpenAI-compatible server as a child of a worker: started, asked for tokens, and never left behind.

It listens on a Unix socket in a folder that only this user may enter, since its API key guards some of its paths
only. Prompts and answers are token ids; it renders no template and is asked for no text. Decision 0016.
"""

import contextlib
import http.client
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import msgspec

from node.errors import ExecutionError, ModelError
from protocol.fields import Dtype

_DTYPES: Final[dict[Dtype, str]] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# It computes with what it finds; nothing is fetched and nothing is reported.
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
_ENVIRONMENT_KEPT: Final = (
    "PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)  # fmt: skip
_MODEL: Final = "m"
_READY_EVERY_S: Final = 0.2
_LOG_LINES: Final = 6
_LINE_CHARS_MAX: Final = 160
DIED: Final = "worker_died"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What to serve, and with what."""

    python: str
    """The interpreter of the environment that vLLM is installed in."""
    folder: Path
    dtype: Dtype
    slots: int
    context_tokens: int
    cache_bytes: int
    """Of each card."""
    cards: int
    extra: tuple[str, ...] = ()
    first_card: int = 0
    memory_share: float | None = None
    """Of each card, what may be taken now; ``None`` on a CPU."""

    def command(self, path: Path) -> list[str]:
        """Return the command of a server that listens at ``path``."""
        # The module: the package is called otherwise in its CPU build, and its console script asks by name.
        return [
            self.python, "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(self.folder), "--served-model-name", _MODEL, "--uds", str(path),
            "--dtype", _DTYPES[self.dtype], "--load-format", "safetensors",
            "--max-model-len", str(self.context_tokens), "--max-num-seqs", str(self.slots),
            "--kv-cache-memory-bytes", str(self.cache_bytes), "--tensor-parallel-size", str(self.cards),
            # Not the penalties and cuts that a model's files may recommend: a contract names its sampling.
            "--generation-config", "vllm",
            "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning", "--disable-log-stats",
            *(() if self.memory_share is None else ("--gpu-memory-utilization", f"{self.memory_share:.2f}")),
            *self.extra,
        ]  # fmt: skip

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Return what its processes find in their environment, where this process has ``ours``."""
        found = {name: ours[name] for name in _ENVIRONMENT_KEPT if name in ours} | _ENVIRONMENT
        if self.memory_share is not None:
            visible = ours.get("CUDA_VISIBLE_DEVICES")
            end = self.first_card + self.cards
            names = visible.split(",") if visible else [str(i) for i in range(end)]
            found["CUDA_VISIBLE_DEVICES"] = ",".join(names[self.first_card : end])
        return found


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


class Stream:
    """One answer on its way; its tokens arrive in the server's queue."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        # http.client forgets it once it has read the header.
        self._socket: socket.socket = connection.sock

    def read(self, body: bytes, arrived: "queue.SimpleQueue[Arrival]") -> None:
        """Ask, and put what comes into ``arrived``: tokens, and last why no more come. Runs in a thread."""
        end = "the answer ended early"
        try:
            self._connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            if response.status == http.HTTPStatus.OK:
                for tokens in _tokens_of(response):
                    arrived.put((self, tokens))
            else:
                end = f"it answers {response.status}"
        except (OSError, http.client.HTTPException, msgspec.DecodeError, ValueError) as exc:
            end = f"the answer broke off: {type(exc).__name__}"
        finally:
            arrived.put((self, end))
            self._connection.close()

    def close(self) -> None:
        """Hang up: the server then frees the sequence."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


Arrival: TypeAlias = tuple[Stream, list[int] | str]


class VllmServer:
    """A server that runs; see ``start_vllm``."""

    def __init__(self, keeper: "subprocess.Popen[bytes]", path: Path) -> None:
        self._keeper, self._path = keeper, path
        self._is_closed = False
        self.arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.version = ""

    def ask(self, wanted: dict[str, Any]) -> Stream:  # Any: JSON to be
        """Start an answer to ``wanted``: the fields of a completion request that are not always the same.

        Raises:
            ExecutionError: ``worker_died``: nobody listens.
        """
        body = msgspec.json.encode({"model": _MODEL, "stream": True, "return_token_ids": True, **wanted})
        try:
            stream = Stream(self._connect())
        except OSError as exc:
            raise ExecutionError(f"vLLM's server is gone: {exc.strerror}", code=DIED) from exc
        threading.Thread(target=stream.read, args=(body, self.arrived), daemon=True).start()
        return stream

    def close(self) -> None:
        """End the server and every process of it."""
        self._is_closed = True
        self._keeper.terminate()
        self._keeper.wait()

    def check(self) -> None:
        """Raise ExecutionError, ``worker_died``, when it has ended by itself."""
        if not self._is_closed and self._keeper.poll() is not None:
            raise ExecutionError("vLLM's server ended", code=DIED)

    def wait_ready(self, log: "deque[str]") -> None:
        """Return once it answers.

        Raises:
            ModelError: it ended instead; the message has its last words.
        """
        while True:
            if self._keeper.poll() is not None:
                raise ModelError(f"vLLM's server ended while it was starting: {' | '.join(log)}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = self._connect()
                connection.request("GET", "/version")
                self.version = str(msgspec.json.decode(connection.getresponse().read())["version"])
                connection.close()
                return
            # It tells nobody when it is ready: its socket is there long before, and refuses.
            time.sleep(_READY_EVERY_S)

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("vllm")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection


def start_vllm(settings: VllmSettings) -> VllmServer:
    """Start a server and return once it answers; from the main thread only, whose end is its end.

    Should it end by itself, ``ExecutionError`` is raised in the main thread, whatever that waits for.

    Raises:
        ModelError: it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="souk-vllm-"))
    path = folder / "socket"
    keeper = [sys.executable, "-P", "-m", "node.execution.engine.vllm_keeper", str(folder), str(os.getpid())]
    clean = ["env", "-i", *(f"{name}={value}" for name, value in settings.environment(os.environ).items())]
    process = subprocess.Popen(  # noqa: S603  our own interpreter, and the operator's
        [*keeper, *clean, *settings.command(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    server = VllmServer(process, path)
    log: deque[str] = deque(maxlen=_LOG_LINES)
    threading.Thread(target=_drain, args=(process, log), daemon=True).start()
    try:
        server.wait_ready(log)
    except BaseException:
        server.close()
        raise
    _watch(server)
    return server


def _watch(server: VllmServer) -> None:
    before = signal.getsignal(signal.SIGCHLD)

    def look(number: int, frame: FrameType | None) -> None:
        server.check()
        if callable(before):  # another model's server
            before(number, frame)

    signal.signal(signal.SIGCHLD, look)


def _drain(process: "subprocess.Popen[bytes]", log: "deque[str]") -> None:
    """Keep the server from waiting for a reader of its log; the last lines tell why it does not start."""
    assert process.stderr is not None
    for line in process.stderr:
        log.append(line.decode("utf-8", "replace").strip()[:_LINE_CHARS_MAX])


def _tokens_of(response: http.client.HTTPResponse) -> Iterator[list[int]]:
    for line in response:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        if line.startswith(b"data: "):
            for choice in msgspec.json.decode(data, type=_Chunk).choices:
                if choice.token_ids:
                    yield choice.token_ids
