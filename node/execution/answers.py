"""What comes back from a worker: frames cut from its bytes, what they mean, and which of them answers what.

Pure: the process and its socket are ``worker_process.py``'s. What a worker sends is not trusted: garbage is a
``ValueError``.
"""

from typing import Final, TypeAlias

from node.errors import ExecutionError, JobRefusedError
from node.execution.frames import (
    LENGTH_BYTES,
    DeviceMeasured,
    Failed,
    FromWorker,
    Load,
    Loaded,
    Measure,
    Measured,
    MeasureDevice,
    Prepare,
    Prepared,
    PrepareItems,
    Probe,
    Probed,
    Score,
    Scored,
    Start,
    StepPiece,
    ToWorker,
    Unload,
    Unloaded,
    decode_from_worker,
    frame_length,
)
from node.execution.interface import Piece
from protocol.errors import RemoteProtocolError
from protocol.task import GenerateOutput
from protocol.tasks.registry import decode_task_output_untrusted

Answer: TypeAlias = Loaded | Unloaded | Prepared | DeviceMeasured | Probed | Measured | Scored
Event: TypeAlias = Answer | Piece | ExecutionError

ANSWERS: Final[dict[type[ToWorker], type[Answer | Piece]]] = {
    Load: Loaded,
    Unload: Unloaded,
    Prepare: Prepared,
    PrepareItems: Prepared,
    Start: Piece,
    MeasureDevice: DeviceMeasured,
    Probe: Probed,
    Measure: Measured,
    Score: Scored,
}
"""What each frame is answered with; any of them may fail instead."""
_REFUSALS: Final = ("model_unknown", "context_exceeded", "input")


def take_frames(buffer: bytearray) -> list[FromWorker]:
    """Cut whole frames off the front of ``buffer``; ``ValueError`` when it holds something else."""
    frames, at = [], 0
    while len(buffer) - at >= LENGTH_BYTES:
        length = frame_length(bytes(buffer[at : at + LENGTH_BYTES]))
        end = at + LENGTH_BYTES + length
        if len(buffer) < end:
            break
        frames.append(decode_from_worker(bytes(buffer[at + LENGTH_BYTES : end])))
        at = end
    del buffer[:at]
    return frames


def to_piece(piece: StepPiece) -> Piece:
    """Return what one step gave one job; ``ValueError`` when a result is none of its task."""
    if not piece.result:
        return Piece(tokens=piece.tokens, text=piece.text, finish=piece.finish, fingerprint=piece.fingerprint)
    try:
        output = decode_task_output_untrusted(piece.task, piece.result)
    except RemoteProtocolError as exc:
        raise ValueError(str(exc)) from exc
    if isinstance(output, GenerateOutput):
        raise ValueError("text came as a result")
    return Piece(finish=output.finish, result=output)


def error_of(failed: Failed) -> ExecutionError:
    """Return what is raised where the answer was awaited."""
    if failed.code not in _REFUSALS:
        return ExecutionError(failed.message, code=failed.code)
    return JobRefusedError(
        failed.message,
        code=failed.code,
        tokens_out_max=failed.tokens_out_max,
        tokens_in_max=failed.tokens_in_max,
    )
