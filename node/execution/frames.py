"""What the daemon and its worker process say to each other: typed msgpack frames over a socket pair.

A frame is a big-endian 32-bit length and one tagged message. Both ends are this program in one version, so
there is no version field; a frame that does not decode is a bug or a torn process, and ends the worker.
"""

import struct
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from protocol import limits
from protocol.fields import Dtype, Task
from protocol.task import ChatMessage, FinishReason

LENGTH_BYTES: Final = 4
# An input of 1 MiB travels in one Prepare; nothing else comes near.
FRAME_BYTES_MAX: Final = 8 << 20
_LENGTH: Final = struct.Struct(">I")
FINGERPRINT_BYTES_MAX: Final = 32 << 10
"""Of one answer: its first 2,048 tokens."""
SDPA: Final = "sdpa"
COMPILED: Final = "compiled"
"""What computes, as profiles name it: torch; and torch beside a decode step that this node compiled."""

# A worker that was turned must not make the daemon break its own rules: what ends in messages to peers has their
# bounds here already.
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 53)]
Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=limits.TOKENS_MAX)]
Token: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of every message; the class name is its tag."""


class Setup(Frame, frozen=True, kw_only=True):
    """The first frame to a worker: which device to take. It refuses to run on another one."""

    device: str
    threads: int
    memory_percent: int = 100
    """Of a CUDA device's memory, what the worker may fill; a CPU worker is watched from outside."""


class VllmUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That vLLM's server computes a model, and on how many cards."""

    python: str
    cards: int = 1
    arguments: tuple[str, ...] = ()


class Load(Frame, frozen=True, kw_only=True):
    """Load a model and reserve its cache; answered by ``Loaded`` or ``Failed`` with this ``request``."""

    request: int
    model: bytes
    folder: str
    dtype: Dtype
    slots: int
    context_tokens: int
    prefill_tokens: int
    """Of one pass, at most."""
    inter_token_ms: int = 200
    """Beside running answers a pass reads no more than leaves them this long between two tokens."""
    task: Task = "generate"
    memory_bytes_max: int = 0
    """What the worker may take in all once this is loaded; 0: no bound."""
    vllm: VllmUse | None = None
    """For text; ``None``: the worker computes it itself."""
    cuda_graphs: bool = False
    decode_library: str = ""
    """The compiled decode step (``node.execution.decode_library``); empty: torch decodes."""


class Unload(Frame, frozen=True, kw_only=True):
    """Give back what a model takes; answered by ``Unloaded``, or ``Failed`` while jobs use it."""

    request: int
    model: bytes


class Prepare(Frame, frozen=True, kw_only=True):
    """Render and tokenise, then hold the prompt as ``request``; answered by ``Prepared`` or ``Failed``."""

    request: int
    model: bytes
    messages: tuple[ChatMessage, ...]
    prompt: str
    stop: tuple[str, ...]
    held: bytes
    """As ``GenerateInput.held``."""
    tokens_out_max: int
    scope: bytes = b""
    """Whose prompt it is: a cached prefix is used again within one scope only; empty, for nobody."""


class PrepareItems(Frame, frozen=True, kw_only=True):
    """As ``Prepare``, for a task that makes no text."""

    request: int
    model: bytes
    task: Task
    data: bytes
    """The input in its canonical encoding."""


class Start(Frame, frozen=True, kw_only=True):
    """Run the prompt held as ``request``; its pieces come in ``Step`` frames."""

    request: int
    temperature_milli: int
    top_p_milli: int
    seed: int
    tokens_out_max: int


class Cancel(Frame, frozen=True, kw_only=True):
    """Forget ``request``, running or held; not answered."""

    request: int


class MeasureDevice(Frame, frozen=True, kw_only=True):
    """Measure the device before anything is loaded; answered by ``DeviceMeasured``."""

    request: int
    dtype: Dtype
    memory_bytes: int
    """At most so much may be taken for it."""


class Probe(Frame, frozen=True, kw_only=True):
    """Compute what is known on the device; answered by ``Probed``, or ``Failed`` when something else comes out."""

    request: int
    dtype: Dtype


class Measure(Frame, frozen=True, kw_only=True):
    """Measure this model's decode speed; answered by ``Measured``."""

    request: int
    model: bytes


class Score(Frame, frozen=True, kw_only=True):
    """Re-check an answer by reading it, after everything else; answered by ``Scored`` or ``Failed``."""

    request: int
    model: bytes
    messages: tuple[ChatMessage, ...]
    prompt: str
    held: bytes
    """As ``GenerateInput.held``."""
    answer: bytes
    """The claimed tokens after those, packed likewise."""
    temperature_milli: int
    top_p_milli: int
    seed: int
    fingerprint: bytes


class Ready(Frame, frozen=True, kw_only=True):
    """The worker has its device; ``None`` where that does not apply to its kind."""

    architecture: str
    dtypes: tuple[Dtype, ...]
    """Best first."""
    runtime: str
    """Such as ``torch 2.13.0``."""
    name: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    uuid: str | None = None
    jail: str = "none"
    """What confines the worker, such as ``landlock+seccomp``."""


class Loaded(Frame, frozen=True, kw_only=True):
    request: int
    kernels: str = SDPA
    """What computes it, as profiles name it; of another runtime than torch, that and its version."""


class Unloaded(Frame, frozen=True, kw_only=True):
    request: int


class Prepared(Frame, frozen=True, kw_only=True):
    request: int
    tokens: Tokens


class DeviceMeasured(Frame, frozen=True, kw_only=True):
    request: int
    matmul_gflops: Count
    read_mb_per_s: Count


class Probed(Frame, frozen=True, kw_only=True):
    request: int


class Measured(Frame, frozen=True, kw_only=True):
    request: int
    tokens_per_s_milli: Count


class Scored(Frame, frozen=True, kw_only=True):
    """As ``interface.Score``."""

    request: int
    margins: tuple[float, ...]
    logprobs: tuple[float, ...]
    fingerprint: bytes
    distances: tuple[float, ...]


class Failed(Frame, frozen=True, kw_only=True):
    """``request`` is over; ``code`` is one of ``ExecutionError``'s fixed words."""

    request: int
    code: str
    message: str
    tokens_out_max: Count | None = None
    """Of an answer that would fit beside this prompt."""
    tokens_in_max: Count | None = None
    """Of a prompt that would fit beside this answer."""


class Fault(Frame, frozen=True, kw_only=True):
    """The worker's last words: it ends now, and every request with it; ``code`` as in ``Failed``."""

    code: str
    message: str


class StepPiece(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    request: int
    tokens: Annotated[tuple[Token, ...], Meta(max_length=limits.OUTPUT_TOKENS_PER_FRAME_MAX)]
    text: Annotated[str, Meta(max_length=limits.DATA_FRAME_BYTES_MAX // 4)]
    finish: FinishReason | None
    task: Task = "generate"
    result: Annotated[bytes, Meta(max_length=limits.DATA_FRAME_BYTES_MAX)] = b""
    """Of another task than text: one output frame's payload, in its canonical encoding."""
    fingerprint: Annotated[bytes, Meta(max_length=FINGERPRINT_BYTES_MAX)] = b""
    """On the last piece of a text: of the hidden states of its beginning (``engine/fingerprint.py``)."""


class Step(Frame, frozen=True, kw_only=True):
    """What one forward pass gave; sent for empty ones too, as the sign of life."""

    pieces: tuple[StepPiece, ...]


ToWorker: TypeAlias = (
    Setup | Load | Unload | Prepare | PrepareItems | Start | Cancel | MeasureDevice | Probe | Measure | Score
)
FromWorker: TypeAlias = (
    Ready | Loaded | Unloaded | Prepared | DeviceMeasured | Probed | Measured | Scored | Failed | Fault | Step
)

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def encode_frame(frame: ToWorker | FromWorker) -> bytes:
    """Return the frame's bytes with their length in front."""
    body = _encoder.encode(frame)
    assert len(body) <= FRAME_BYTES_MAX
    return _LENGTH.pack(len(body)) + body


def frame_length(prefix: bytes) -> int:
    """Return how many bytes follow this prefix.

    Raises:
        ValueError: more than any frame has.
    """
    (length,) = _LENGTH.unpack(prefix)
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {length} bytes, at most {FRAME_BYTES_MAX}")
    return int(length)


def decode_to_worker(body: bytes) -> ToWorker:
    """Return the message in ``body``; ``ValueError`` when there is none."""
    try:
        frame: ToWorker = _to_worker.decode(body)
    except msgspec.MsgspecError as exc:
        raise ValueError(str(exc)) from exc
    return frame


def decode_from_worker(body: bytes) -> FromWorker:
    """Return the message in ``body``; ``ValueError`` when there is none."""
    try:
        frame: FromWorker = _from_worker.decode(body)
    except msgspec.MsgspecError as exc:
        raise ValueError(str(exc)) from exc
    return frame
