"""Bodies of ``/api/v1/tasks``: what is asked of each task that makes no text, and what is answered (spec 04).

Bytes are base64 in JSON. Bounds of one value stand on the fields; that the whole travels is ``orders.py``'s.
"""

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from node.api.bodies import SoukBlock, SoukOptions
from node.api.views import View
from protocol import limits
from protocol.tasks.classify import Image
from protocol.tasks.registry import CLASSIFY, EMBED, FORWARD, VAD
from protocol.tasks.vad import SAMPLE_BYTES

Text = Annotated[str, Meta(min_length=1)]
Milliseconds = Annotated[int, Meta(ge=0, le=limits.JOB_LIFE_MS_MAX)]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all requests have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=limits.TEXT_BYTES_MAX)]
    souk: SoukOptions = SoukOptions()


class EmbedRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    texts: Annotated[list[Text], Meta(min_length=1, max_length=limits.TEXTS_MAX)]


class ClassifyRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    images: Annotated[list[Image], Meta(min_length=1, max_length=limits.IMAGES_MAX)]
    """Pixels, not files; all images together have a little less than a MiB."""
    top: Annotated[int, Meta(ge=1, le=limits.CLASSES_MAX)] = 5
    """How many classes of each image."""


class VadRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    samples: Annotated[bytes, Meta(min_length=SAMPLE_BYTES, max_length=limits.INPUT_BYTES_MAX)]
    """One channel at 16 kHz, 16 bits signed, little-endian; 32 s travel in one job."""
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """A window is speech from this chance on."""
    silence_ms_min: Milliseconds = 100
    """Shorter silences do not end a segment."""
    speech_ms_min: Milliseconds = 250
    """Shorter segments are left out."""


class ForwardRequest(Asked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tensors: Annotated[bytes, Meta(min_length=1, max_length=limits.INPUT_BYTES_MAX)]
    """A safetensors file with the tensors that the model's architecture names (spec 04, section 8)."""
    output_bytes_max: Annotated[int, Meta(ge=1, le=limits.INPUT_BYTES_MAX)] = limits.INPUT_BYTES_MAX
    """The longest answer that is wanted: it bounds the price; paid is what comes."""


TaskRequest: TypeAlias = EmbedRequest | ClassifyRequest | VadRequest | ForwardRequest


class TaskUsage(View, frozen=True, kw_only=True):
    """As metered, in the task's units: tokens, vectors, 256 pixels, images, windows of 32 ms, KiB."""

    units_in: int
    units_out: int


class Answered(View, frozen=True, kw_only=True):
    """What all answers have in common."""

    schema: int = 1
    model: str
    usage: TaskUsage
    souk: SoukBlock


class TextVector(View, frozen=True, kw_only=True):
    index: int
    """Of the text, from 0."""
    vector: tuple[float, ...]
    """Of length 1."""


class EmbedAnswer(Answered, frozen=True, kw_only=True, tag_field="task", tag=EMBED):
    vectors: tuple[TextVector, ...]


class NamedClass(View, frozen=True, kw_only=True):
    index: int
    label: str | None
    """What the provider's model files call it, if they have a name."""
    probability: float


class ClassifiedImage(View, frozen=True, kw_only=True):
    index: int
    """Of the image, from 0."""
    classes: tuple[NamedClass, ...]
    """The likeliest first."""


class ClassifyAnswer(Answered, frozen=True, kw_only=True, tag_field="task", tag=CLASSIFY):
    images: tuple[ClassifiedImage, ...]


class SpeechSegment(View, frozen=True, kw_only=True):
    start_ms: int
    end_ms: int


class VadAnswer(Answered, frozen=True, kw_only=True, tag_field="task", tag=VAD):
    segments: tuple[SpeechSegment, ...]
    duration_ms: int
    window_ms: int
    speech_milli: tuple[int, ...]
    """How likely each window holds speech, in thousandths: what the segments are made of."""


class ForwardAnswer(Answered, frozen=True, kw_only=True, tag_field="task", tag=FORWARD):
    tensors: bytes
    """A safetensors file."""


TaskAnswer: TypeAlias = EmbedAnswer | ClassifyAnswer | VadAnswer | ForwardAnswer
