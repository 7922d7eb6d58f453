"""From a request of ``/api/v1/tasks`` to a task's input, and from its outputs to the answer."""

from collections.abc import Sequence
from typing import Final, assert_never

from node.api.bodies import SoukBlock
from node.api.errors import bad_request
from node.api.speech import find_speech
from node.api.task_bodies import (
    ClassifiedImage,
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    ForwardAnswer,
    ForwardRequest,
    NamedClass,
    SpeechSegment,
    TaskAnswer,
    TaskRequest,
    TaskUsage,
    TextVector,
    VadAnswer,
    VadRequest,
)
from protocol.tasks.classify import MILLION, ClassifyInput, ClassifyOutput
from protocol.tasks.embed import EmbedInput, EmbedOutput, unpack_vector
from protocol.tasks.forward import ForwardInput, ForwardOutput
from protocol.tasks.registry import ItemInput, ItemOutput
from protocol.tasks.vad import SAMPLE_BYTES, SAMPLE_RATE_HZ, WINDOW_SAMPLES, VadInput, VadOutput

_SAMPLES_PER_MS: Final = SAMPLE_RATE_HZ // 1000
WINDOW_MS: Final = WINDOW_SAMPLES // _SAMPLES_PER_MS


def input_field(request: TaskRequest) -> str:
    """Return the field that is at fault when the input is too long."""
    match request:
        case EmbedRequest():
            return "texts"
        case ClassifyRequest():
            return "images"
        case VadRequest():
            return "samples"
        case ForwardRequest():
            return "tensors"
        case _:
            assert_never(request)


def to_task_input(request: TaskRequest) -> ItemInput:
    """Raises: ApiError (400)."""
    try:
        match request:
            case EmbedRequest():
                return EmbedInput(texts=tuple(request.texts))
            case ClassifyRequest():
                return ClassifyInput(images=tuple(request.images), top=request.top)
            case VadRequest():
                return VadInput(samples=request.samples)
            case ForwardRequest():
                return ForwardInput(tensors=request.tensors, output_bytes_max=request.output_bytes_max)
            case _:
                assert_never(request)
    except ValueError as exc:
        raise bad_request(str(exc), param=input_field(request)) from exc


def to_answer(
    request: TaskRequest, outputs: Sequence[ItemOutput], usage: TaskUsage, souk: SoukBlock
) -> TaskAnswer:
    """Return what the client gets for all outputs of its job, in order."""
    model = request.model
    match request:
        case EmbedRequest():
            return EmbedAnswer(model=model, vectors=_vectors(outputs), usage=usage, souk=souk)
        case ClassifyRequest():
            return ClassifyAnswer(model=model, images=_images(outputs), usage=usage, souk=souk)
        case VadRequest():
            milli = tuple(value for it in outputs if isinstance(it, VadOutput) for value in it.speech_milli)
            duration_ms = len(request.samples) // SAMPLE_BYTES // _SAMPLES_PER_MS
            return VadAnswer(
                model=model,
                segments=_segments(request, milli, duration_ms),
                duration_ms=duration_ms,
                window_ms=WINDOW_MS,
                speech_milli=milli,
                usage=usage,
                souk=souk,
            )
        case ForwardRequest():
            data = b"".join(it.data for it in outputs if isinstance(it, ForwardOutput))
            return ForwardAnswer(model=model, tensors=data, usage=usage, souk=souk)
        case _:
            assert_never(request)


def _vectors(outputs: Sequence[ItemOutput]) -> tuple[TextVector, ...]:
    vectors = [it.vector for it in outputs if isinstance(it, EmbedOutput)]
    return tuple(TextVector(index=index, vector=unpack_vector(vector)) for index, vector in enumerate(vectors))


def _images(outputs: Sequence[ItemOutput]) -> tuple[ClassifiedImage, ...]:
    images = [it.classes for it in outputs if isinstance(it, ClassifyOutput)]
    return tuple(
        ClassifiedImage(
            index=index,
            classes=tuple(
                NamedClass(index=it.index, label=it.label or None, probability=it.probability_ppm / MILLION)
                for it in classes
            ),
        )
        for index, classes in enumerate(images)
    )


def _segments(request: VadRequest, speech_milli: tuple[int, ...], duration_ms: int) -> tuple[SpeechSegment, ...]:
    found = find_speech(
        [milli >= request.threshold * 1000 for milli in speech_milli],
        WINDOW_MS,
        silence_ms_min=request.silence_ms_min,
        speech_ms_min=request.speech_ms_min,
    )
    # Silence fills the last window.
    return tuple(SpeechSegment(start_ms=it.start_ms, end_ms=min(it.end_ms, duration_ms)) for it in found)
