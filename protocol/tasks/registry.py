"""All tasks side by side: their names, inputs, outputs and readers (spec 04)."""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from protocol import limits
from protocol.encoding import decode_untrusted, encode
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError
from protocol.fields import Task
from protocol.schema import to_message_untrusted, to_plain
from protocol.task import GENERATE, GenerateInput, GenerateOutput
from protocol.tasks.classify import ClassifyInput, ClassifyOutput, compare_classes
from protocol.tasks.comparison import Comparison
from protocol.tasks.embed import EmbedInput, EmbedOutput, compare_vectors
from protocol.tasks.forward import ForwardInput, ForwardOutput, compare_tensors
from protocol.tasks.vad import VadInput, VadOutput, compare_windows

EMBED: Final = "embed"
CLASSIFY: Final = "classify"
VAD: Final = "vad"
FORWARD: Final = "forward"

ItemInput: TypeAlias = EmbedInput | ClassifyInput | VadInput | ForwardInput
ItemOutput: TypeAlias = EmbedOutput | ClassifyOutput | VadOutput | ForwardOutput
"""Whatever is not text in the making: a job is a number of items, each worth a number of units."""
TaskInput: TypeAlias = GenerateInput | ItemInput
TaskOutput: TypeAlias = GenerateOutput | ItemOutput

INPUTS: Final[dict[Task, type[TaskInput]]] = {
    GENERATE: GenerateInput,
    EMBED: EmbedInput,
    CLASSIFY: ClassifyInput,
    VAD: VadInput,
    FORWARD: ForwardInput,
}
OUTPUTS: Final[dict[Task, type[TaskOutput]]] = {
    GENERATE: GenerateOutput,
    EMBED: EmbedOutput,
    CLASSIFY: ClassifyOutput,
    VAD: VadOutput,
    FORWARD: ForwardOutput,
}
_TASK_OF: Final[dict[type[object], Task]] = {kind: task for task, kind in (*INPUTS.items(), *OUTPUTS.items())}
_ENTRIES_MAX: Final[dict[Task, int]] = {EMBED: limits.TEXTS_MAX}
"""Where an input is a longer list than any other value."""


_COMPARISONS: Final[dict[type[object], Callable[..., Comparison]]] = {
    EmbedOutput: compare_vectors,
    ClassifyOutput: compare_classes,
    VadOutput: compare_windows,
    ForwardOutput: compare_tensors,
}


def task_of(value: TaskInput | TaskOutput) -> Task:
    """Return the name of the task that this is an input or output of."""
    return _TASK_OF[type(value)]


def serves(model_task: str, task: str) -> bool:
    """Return whether a model that is offered for ``model_task`` takes jobs of ``task``.

    Tensors run through any model that is not generating text.
    """
    return task == model_task or (task == FORWARD and model_task != GENERATE)


def compare(theirs: Sequence[TaskOutput], ours: Sequence[TaskOutput]) -> Comparison:
    """Judge the outputs of a whole job by our own of the same input (spec 04, section 9).

    Text is judged by its tokens' margins, which needs the model: not here.
    """
    kind = type(ours[0])
    if any(type(output) is not kind for output in (*theirs, *ours)):
        return Comparison(holds=False, worst=1.0, message="expected outputs of one task")
    judge = _COMPARISONS[kind]
    return judge(theirs, ours)


def encode_task_input(task_input: TaskInput) -> bytes:
    """Return the canonical bytes of an input.

    Raises:
        LocalProtocolError: it is longer than ``limits.INPUT_BYTES_MAX``.
    """
    entries_max = _ENTRIES_MAX.get(task_of(task_input), limits.ENTRIES_MAX)
    data = encode(to_plain(task_input), entries_max=entries_max)
    if len(data) > limits.INPUT_BYTES_MAX:
        raise LocalProtocolError(
            f"the input has {len(data)} bytes, at most {limits.INPUT_BYTES_MAX} travel", reason=Reason.SIZE
        )
    return data


def decode_task_input_untrusted(task: Task, data: bytes) -> TaskInput:
    """Return the input of a job that a peer sent; raises nothing but ``RemoteProtocolError``."""
    if len(data) > limits.INPUT_BYTES_MAX:
        raise RemoteProtocolError(f"an input of {len(data)} bytes", reason=Reason.SIZE)
    entries_max = _ENTRIES_MAX.get(task, limits.ENTRIES_MAX)
    value = decode_untrusted(data, size_max=limits.INPUT_BYTES_MAX, entries_max=entries_max)
    return to_message_untrusted(value, INPUTS[task])


def encode_task_output(output: TaskOutput) -> bytes:
    """Return the canonical bytes of one output frame's payload."""
    return encode(to_plain(output))


def decode_task_output_untrusted(task: Task, data: bytes) -> TaskOutput:
    """Return the output that a provider sent; raises nothing but ``RemoteProtocolError``."""
    return to_message_untrusted(decode_untrusted(data, size_max=limits.DATA_FRAME_BYTES_MAX), OUTPUTS[task])
