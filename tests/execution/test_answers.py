import pytest

from node.errors import ExecutionError, JobRefusedError
from node.execution.answers import error_of, take_frames, to_piece
from node.execution.frames import Failed, FromWorker, Probed, StepPiece, Unloaded, encode_frame
from protocol.task import GenerateOutput
from protocol.tasks.embed import EmbedOutput
from protocol.tasks.registry import encode_task_output

FRAMES: list[FromWorker] = [Unloaded(request=1), Failed(request=2, code="load", message="no"), Probed(request=3)]


def piece(task: str, result: bytes) -> StepPiece:
    return StepPiece(request=1, tokens=(), text="", finish=None, task=task, result=result)


def test_frames_are_the_same_however_the_bytes_arrive() -> None:
    data, buffer, found = b"".join(encode_frame(it) for it in FRAMES), bytearray(), []
    for byte in data:
        buffer.append(byte)
        found += take_frames(buffer)
    assert found == take_frames(bytearray(data)) == FRAMES and not buffer


def test_part_of_a_frame_stays_until_the_rest_arrives() -> None:
    first, rest = encode_frame(FRAMES[0]), encode_frame(FRAMES[1])[:-1]
    buffer = bytearray(first + rest)
    assert take_frames(buffer) == FRAMES[:1] and buffer == rest


def test_result_of_a_task_is_its_output_and_another_one_is_garbage() -> None:
    vector = EmbedOutput(vector=bytes(8), finish="stop")
    found = to_piece(piece("embed", encode_task_output(vector)))
    assert (found.result, found.finish) == (vector, "stop")
    text = encode_task_output(GenerateOutput(tokens=(1,), text="a", finish="stop"))
    for wrong in (piece("embed", b"\xc1"), piece("generate", text)):
        with pytest.raises(ValueError):
            to_piece(wrong)


@pytest.mark.parametrize(("code", "is_refusal"), [("input", True), ("not_finite", False)])
def test_refused_job_is_another_error_than_a_failed_one(code: str, is_refusal: bool) -> None:
    error = error_of(Failed(request=1, code=code, message="no", tokens_out_max=7))
    assert isinstance(error, ExecutionError) and (error.code, str(error)) == (code, "no")
    assert isinstance(error, JobRefusedError) == is_refusal
    if isinstance(error, JobRefusedError):
        assert error.tokens_out_max == 7
