"""EfficientNet-lite: images to classes (``classify``). Batch norms are folded into the convolutions at load.

Source: the lite variants of EfficientNet (arXiv 1905.11946) have no squeeze-and-excitation, and ReLU6 everywhere.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from node.errors import JobRefusedError, ModelError
from node.execution.engine.items import Item
from node.execution.engine.tensors import refuse_unless
from protocol import limits
from protocol.fields import Task
from protocol.tasks.classify import CHANNELS, MILLION, ClassifyInput, ClassifyOutput, Image, ImageClass
from protocol.tasks.registry import CLASSIFY, ItemInput, ItemOutput

# Of one step: on the CPU 105 to 130 ms of EfficientNet-lite0 on one core of an EPYC.
BUDGET_IMAGES: Final = {"cpu": 4, "cuda": 64}
_NORM_EPSILON: Final = 1e-3
_SIDE_STEP: Final = 32
"""The network halves its input five times."""
_BLOCKS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierShape:
    """What ``config.json`` says, as the import writes it."""

    strides: tuple[int, ...]
    """Of each block."""
    image_side: int
    crop_permille: int
    """How much of the shorter side is kept."""
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    labels: dict[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem:
    image: Image
    top: int

    @property
    def weight(self) -> int:
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Convolution:
    weight: Tensor
    bias: Tensor
    stride: int = 1
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve as TensorFlow pads "same", of which the odd pixel is on the right and below."""
        kernel = self.weight.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            pad = max((-(-side // self.stride) - 1) * self.stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return functional.conv2d(functional.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    expand: _Convolution | None
    depthwise: _Convolution
    project: _Convolution

    def __call__(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else functional.relu6(self.expand(x))
        made = self.project(functional.relu6(self.depthwise(wide)))
        return x + made if made.shape == x.shape else made


class Classifier:
    """Implements ``items.Network``."""

    task: Task = CLASSIFY

    def __init__(self, shape: ClassifierShape, weights: dict[str, Tensor], device: torch.device) -> None:
        self._shape, self._device = shape, device
        self.budget = BUDGET_IMAGES[device.type]
        self._stem = _folded(weights, "_conv_stem", "_bn0", stride=2)
        self._blocks = [_block(weights, f"_blocks.{place}.", stride) for place, stride in enumerate(shape.strides)]
        self._head = _folded(weights, "_conv_head", "_bn1")
        self._last = weights["_fc.weight"], weights["_fc.bias"]
        self._mean = torch.tensor(shape.mean, device=device).view(CHANNELS, 1, 1)
        self._deviation = torch.tensor(shape.deviation, device=device).view(CHANNELS, 1, 1)

    def items(self, task_input: ItemInput) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        assert isinstance(task_input, ClassifyInput)
        return task_input.units_in_max, [ImageItem(image=it, top=task_input.top) for it in task_input.images]

    def compute(self, items: Sequence[Item]) -> list[ItemOutput | None]:
        """See ``items.Network``."""
        images = [item for item in items if isinstance(item, ImageItem)]
        pixels = torch.stack([self._pixels(item.image) for item in images])
        chances = self._logits(pixels).softmax(dim=-1).cpu()
        return [
            self._output(row, item.top) if row.isfinite().all() else None
            for row, item in zip(chances, images, strict=True)
        ]

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``items.Network``."""
        return {"logits": self._logits(tensors["pixels"])}

    def check(self, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See ``items.Network``."""
        refuse_unless(tensors, {"pixels": (torch.float32, (None, CHANNELS, None, None))})
        rows, _, height, width = tensors["pixels"].shape
        if height % _SIDE_STEP or width % _SIDE_STEP:
            raise JobRefusedError(f"pixels: expected sides that are multiples of {_SIDE_STEP}", code="input")
        return {"logits": (rows, len(self._last[1]))}

    def example(self) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        side = self._shape.image_side
        task_input = ClassifyInput(images=(Image(width=side, height=side, rgb=bytes(side * side * CHANNELS)),))
        return self.items(task_input)

    def _pixels(self, image: Image) -> Tensor:
        """Return (3, S, S) float32: the middle of the image, scaled and normalised."""
        side = self._shape.image_side
        raw = torch.frombuffer(bytearray(image.rgb), dtype=torch.uint8).to(self._device)
        pixels = raw.view(image.height, image.width, CHANNELS).permute(2, 0, 1).float() / 255
        kept = min(image.width, image.height) * self._shape.crop_permille // 1000 or 1
        top, left = (image.height - kept) // 2, (image.width - kept) // 2
        middle = pixels[:, top : top + kept, left : left + kept]
        # Cut before it is scaled: an image of 4096 × 1 must not become one of a million columns.
        scaled = functional.interpolate(middle[None], (side, side), mode="bilinear", antialias=True)[0]
        return (scaled - self._mean) / self._deviation

    def _logits(self, pixels: Tensor) -> Tensor:
        x = functional.relu6(self._stem(pixels))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._head(x)).mean(dim=(2, 3))
        return functional.linear(x, *self._last)

    def _output(self, chances: Tensor, top: int) -> ClassifyOutput:
        values, indexes = chances.topk(min(top, len(chances)))
        return ClassifyOutput(
            classes=tuple(
                ImageClass(
                    index=index, label=self._shape.labels.get(index, ""), probability_ppm=round(value * MILLION)
                )
                for value, index in zip(values.tolist(), indexes.tolist(), strict=True)
            )
        )


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """Load a classifier in float32.

    Raises:
        ModelError, KeyError, ValueError, OSError: the files are no classifier that runs here.
    """
    shape = _read_shape(folder)
    with safe_open(str(folder / "model.safetensors"), "pt", device=str(device)) as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return Classifier(shape, weights, device)


def _read_shape(folder: Path) -> ClassifierShape:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())  # Any: checked here
    shape = ClassifierShape(
        strides=tuple(int(stride) for stride in config["strides"]),
        image_side=int(config["image_size"]),
        crop_permille=int(config["crop_permille"]),
        mean=tuple(float(value) for value in config["image_mean"]),
        deviation=tuple(float(value) for value in config["image_std"]),
        labels={
            int(index): str(label)[: limits.TEXT_BYTES_MAX] for index, label in config.get("id2label", {}).items()
        },
    )
    is_sane = (
        0 < len(shape.strides) <= _BLOCKS_MAX
        and set(shape.strides) <= {1, 2}
        and _SIDE_STEP <= shape.image_side <= limits.IMAGE_SIDE_MAX
        and 0 < shape.crop_permille <= 1000
        and len(shape.mean) == len(shape.deviation) == CHANNELS
        and all(shape.deviation)
    )
    if not is_sane:
        raise ModelError("config.json: expected strides of 1 and 2, a side, a crop, and mean and std of 3 colours")
    return shape


def _block(weights: dict[str, Tensor], prefix: str, stride: int) -> _Block:
    has_expansion = f"{prefix}_expand_conv.weight" in weights
    return _Block(
        expand=_folded(weights, f"{prefix}_expand_conv", f"{prefix}_bn0") if has_expansion else None,
        depthwise=_folded(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride, is_depthwise=True),
        project=_folded(weights, f"{prefix}_project_conv", f"{prefix}_bn2"),
    )


def _folded(
    weights: dict[str, Tensor], name: str, norm: str, *, stride: int = 1, is_depthwise: bool = False
) -> _Convolution:
    """Return a convolution that does what it and the batch norm behind it do."""
    weight = weights[f"{name}.weight"]
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _NORM_EPSILON).sqrt()
    return _Convolution(
        weight=weight * scale.view(-1, 1, 1, 1),
        bias=weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale,
        stride=stride,
        groups=len(weight) if is_depthwise else 1,
    )
