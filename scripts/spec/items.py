"""Example inputs and outputs of the tasks beside ``generate``, and their vectors (spec 04, sections 4 to 9)."""

import json
import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from protocol import limits
from protocol.encoding import Plain, encode
from protocol.task import pack_tokens
from protocol.tasks.classify import ClassifyInput, ClassifyOutput, Image, ImageClass
from protocol.tasks.embed import EmbedInput, EmbedOutput
from protocol.tasks.forward import ForwardInput, ForwardOutput, split_tensors
from protocol.tasks.registry import (
    ItemInput,
    TaskOutput,
    compare,
    encode_task_input,
    encode_task_output,
    task_of,
)
from protocol.tasks.vad import VadInput, VadOutput

Json: TypeAlias = Any  # as in vectors.py


def tensor_file(*tensors: tuple[str, str, Sequence[int], bytes], head: bytes = b"") -> bytes:
    """Return a safetensors file of (name, dtype, shape, bytes) in this order; ``head`` stands for its header."""
    entries, at = {}, 0
    for name, dtype, shape, data in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = head or json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header)) + header + b"".join(data for *_, data in tensors)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


TENSORS: Final = tensor_file(("audio", "F32", (1, 4), floats(0.0, 0.5, -0.5, 1.0)), ("h", "F16", (2,), bytes(4)))
INPUTS: Final[tuple[ItemInput, ...]] = (
    EmbedInput(texts=("Wie weit ist es zum Mond?", "🌒")),
    EmbedInput(tokens=(pack_tokens((101, 7592, 102)),)),
    ClassifyInput(images=(Image(width=2, height=1, rgb=bytes(range(6))),), top=2),
    VadInput(samples=struct.pack("<4h", 0, 1000, -1000, 32_767)),
    ForwardInput(tensors=TENSORS, output_bytes_max=4096),
)
OUTPUTS: Final[tuple[TaskOutput, ...]] = (
    EmbedOutput(vector=floats(0.6, 0.8)),
    EmbedOutput(vector=floats(0.8, -0.6), finish="stop"),
    ClassifyOutput(
        classes=(
            ImageClass(index=282, label="tiger cat", probability_ppm=700_000),
            ImageClass(index=7, label="", probability_ppm=1),
        ),
        finish="stop",
    ),
    VadOutput(speech_milli=(0, 1000, 513)),
    *split_tensors(TENSORS),
)


def _refused_inputs() -> dict[str, tuple[str, dict[str, Plain]]]:
    pixel = {"width": 1, "height": 1, "rgb": bytes(3)}
    return {
        "neither texts nor tokens": ("embed", {}),
        "both texts and tokens": ("embed", {"texts": ["a"], "tokens": [bytes(4)]}),
        "an empty text": ("embed", {"texts": [""]}),
        "tokens of three bytes": ("embed", {"tokens": [bytes(3)]}),
        "no image": ("classify", {"images": []}),
        "a pixel too few": ("classify", {"images": [{**pixel, "width": 2}]}),
        "an image without a side": ("classify", {"images": [{**pixel, "height": 0}]}),
        "more classes than there may be": ("classify", {"images": [pixel], "top": 65}),
        "half a sample": ("vad", {"samples": bytes(3)}),
        "another sample rate": ("vad", {"samples": bytes(4), "sample_rate_hz": 44_100}),
        "no room for an answer": ("forward", {"tensors": TENSORS, "output_bytes_max": 0}),
        **{
            name: ("forward", {"tensors": data, "output_bytes_max": 1})
            for name, data in _refused_tensors().items()
        },
    }


def _refused_tensors() -> dict[str, bytes]:
    one = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    heads: dict[str, object] = {
        "tensors: none": {},
        "tensors: an empty one": {"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
        "tensors: an unknown dtype": {"a": {**one, "dtype": "OBJ"}},
        "tensors: a field more": {"a": {**one, "code": "x"}},
        "tensors: a hole": {"a": {**one, "data_offsets": [1, 2]}},
        "tensors: two in one place": {"a": one, "b": one},
    }
    made = {
        name: tensor_file(head=json.dumps(head, separators=(",", ":")).encode()) + b"\0"
        for name, head in heads.items()
    }
    twice = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}'
    return made | {
        "tensors: a name twice": tensor_file(head=twice) + b"\0",
        "tensors: a pickle": b"\x80\x04\x95" + bytes(20),
        "tensors: a tail": TENSORS + b"\0",
        "tensors: cut short": TENSORS[:-1],
    }


def _refused_outputs() -> dict[str, tuple[str, dict[str, Plain]]]:
    return {
        "half a number": ("embed", {"vector": bytes(6)}),
        "a number that is none": ("embed", {"vector": floats(1.0, float("nan"))}),
        "a number without an end": ("embed", {"vector": floats(float("-inf"), float("inf"))}),
        "another finish": ("embed", {"vector": bytes(4), "finish": "done"}),
        "no class": ("classify", {"classes": []}),
        "a probability above one": (
            "classify",
            {"classes": [{"index": 0, "label": "", "probability_ppm": 1_000_001}]},
        ),
        "no window": ("vad", {"speech_milli": []}),
        "a window above one": ("vad", {"speech_milli": [1001]}),
        "a frame that is not full": ("forward", {"data": b"a"}),
        "no bytes": ("forward", {"data": b"", "finish": "stop"}),
    }


def _comparisons() -> list[tuple[str, TaskOutput, TaskOutput]]:
    def image(index: int, ppm: int) -> ClassifyOutput:
        rest = ImageClass(index=9, label="", probability_ppm=100_000)
        return ClassifyOutput(classes=(ImageClass(index=index, label="", probability_ppm=ppm), rest))

    def answer(*values: float) -> ForwardOutput:
        return split_tensors(tensor_file(("out", "F32", (len(values),), floats(*values))))[0]

    vector = EmbedOutput(vector=floats(1.0, 0.0))
    return [
        ("a vector near enough", EmbedOutput(vector=floats(1.0, 0.01)), vector),
        ("a vector too far", EmbedOutput(vector=floats(1.0, 0.02)), vector),
        ("a vector without a length", EmbedOutput(vector=floats(0.0, 0.0)), vector),
        ("a vector of another size", EmbedOutput(vector=floats(1.0)), vector),
        ("the same class", image(1, 509_000), image(1, 500_000)),
        ("a class as likely", image(9, 100_000), image(1, 105_000)),
        ("another class", image(9, 500_000), image(1, 500_000)),
        ("windows near enough", VadOutput(speech_milli=(510, 0)), VadOutput(speech_milli=(500, 0))),
        ("a window too far", VadOutput(speech_milli=(511, 0)), VadOutput(speech_milli=(500, 0))),
        ("a window too few", VadOutput(speech_milli=(500,)), VadOutput(speech_milli=(500, 0))),
        ("tensors near enough", answer(1.0005, 2.0), answer(1.0, 2.0)),
        ("tensors too far", answer(1.003, 2.0), answer(1.0, 2.0)),
        ("tensors of another shape", answer(1.0), answer(1.0, 2.0)),
        ("tensors that are no numbers", answer(float("nan"), 2.0), answer(1.0, 2.0)),
    ]


def item_tasks() -> Json:
    """Return what stands in ``tasks.json``."""
    return {
        "inputs": [
            {
                "task": task_of(value),
                "units_in_max": value.units_in_max,
                "units_out": value.units_out,
                "hex": encode_task_input(value).hex(),
            }
            for value in INPUTS
        ],
        "outputs": [
            {"task": task_of(value), "units": value.units, "hex": encode_task_output(value).hex()}
            for value in OUTPUTS
        ],
        "invalid_inputs": [_refused(name, *case) for name, case in _refused_inputs().items()],
        "invalid_outputs": [
            *(_refused(name, *case) for name, case in _refused_outputs().items()),
            _refused("a vector that is too long", "embed", {"vector": bytes(limits.VECTOR_BYTES_MAX + 4)}),
        ],
        "comparisons": [
            {
                "name": name,
                "task": task_of(theirs),
                "theirs": encode_task_output(theirs).hex(),
                "ours": encode_task_output(ours).hex(),
                "holds": compare((theirs,), (ours,)).holds,
            }
            for name, theirs, ours in _comparisons()
        ],
    }


def _refused(name: str, task: str, value: dict[str, Plain]) -> Json:
    data = encode(value, entries_max=limits.TEXTS_MAX)
    # Long ones are zeros at the end: a vector says how many.
    short = data.rstrip(b"\0")
    return {"name": name, "task": task, "hex": short.hex(), "zeros": len(data) - len(short), "reason": "schema"}
