import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from node.errors import JobRefusedError, ModelError
from node.execution.engine.classifier import Classifier, load_classifier
from protocol.tasks.classify import ClassifyInput, ClassifyOutput, Image

CLASSES = 7
CONFIG = {
    "model_type": "efficientnet-lite",
    "strides": [1, 2],
    "image_size": 32,
    "crop_permille": 875,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "id2label": {"3": "cat"},
}
CONVOLUTIONS = {
    "_conv_stem": ("_bn0", (8, 3, 3, 3)),
    "_blocks.0._depthwise_conv": ("_blocks.0._bn1", (8, 1, 3, 3)),
    "_blocks.0._project_conv": ("_blocks.0._bn2", (8, 8, 1, 1)),
    "_blocks.1._expand_conv": ("_blocks.1._bn0", (16, 8, 1, 1)),
    "_blocks.1._depthwise_conv": ("_blocks.1._bn1", (16, 1, 5, 5)),
    "_blocks.1._project_conv": ("_blocks.1._bn2", (12, 16, 1, 1)),
    "_conv_head": ("_bn1", (20, 12, 1, 1)),
}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    made = {"_fc.weight": torch.randn(CLASSES, 20), "_fc.bias": torch.randn(CLASSES)}
    for name, (norm, shape) in CONVOLUTIONS.items():
        made[f"{name}.weight"] = torch.randn(shape) * 0.5
        for part in ("weight", "bias", "running_mean"):
            made[f"{norm}.{part}"] = torch.randn(shape[0])
        made[f"{norm}.running_var"] = torch.rand(shape[0]) + 0.5
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(weights(), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def classifier(folder: Path) -> Classifier:
    return load_classifier(folder, torch.device("cpu"))


def reference(x: torch.Tensor) -> torch.Tensor:
    """Return logits with batch norms of their own; of even sides, "same" pads a stride of 2 on the right only."""
    w = weights()

    def run(x: torch.Tensor, name: str, *, stride: int = 1, groups: int = 1) -> torch.Tensor:
        norm, shape = CONVOLUTIONS[name]
        whole = shape[-1] - stride
        padded = functional.pad(x, (whole // 2, whole - whole // 2) * 2)
        made = functional.conv2d(padded, w[f"{name}.weight"], stride=stride, groups=groups)
        layer = nn.BatchNorm2d(shape[0], eps=1e-3).eval()
        layer.load_state_dict(
            {part: w[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}, strict=False
        )
        return layer(made)

    with torch.inference_mode():
        x = functional.relu6(run(x, "_conv_stem", stride=2))
        inner = functional.relu6(run(x, "_blocks.0._depthwise_conv", groups=8))
        x = x + run(inner, "_blocks.0._project_conv")
        inner = functional.relu6(run(x, "_blocks.1._expand_conv"))
        inner = functional.relu6(run(inner, "_blocks.1._depthwise_conv", stride=2, groups=16))
        x = functional.relu6(run(run(inner, "_blocks.1._project_conv"), "_conv_head"))
        return functional.linear(x.mean((2, 3)), w["_fc.weight"], w["_fc.bias"])


def image(width: int, height: int) -> Image:
    torch.manual_seed(width)
    rgb = bytes(torch.randint(0, 256, (width * height * 3,)).tolist())
    return Image(width=width, height=height, rgb=rgb)


def test_logits_are_those_of_the_network_with_its_batch_norms(classifier: Classifier) -> None:
    pixels = torch.randn(2, 3, 64, 32)
    assert classifier.check({"pixels": pixels}) == {"logits": (2, CLASSES)}
    assert torch.allclose(classifier.forward({"pixels": pixels})["logits"], reference(pixels), atol=1e-4)


def test_classes_come_likeliest_first_and_do_not_depend_on_the_batch(classifier: Classifier) -> None:
    task_input = ClassifyInput(images=(image(40, 50), image(1, 9), image(64, 33)), top=5)
    units, items = classifier.items(task_input)
    assert units == 8 + 1 + 9
    together = classifier.compute(items)
    for item, output in zip(items, together, strict=True):
        assert isinstance(output, ClassifyOutput) and len(output.classes) == 5
        chances = [it.probability_ppm for it in output.classes]
        assert chances == sorted(chances, reverse=True)
        assert {it.label for it in output.classes if it.index == 3} <= {"cat"}
        (alone,) = classifier.compute([item])
        assert isinstance(alone, ClassifyOutput)
        assert [it.index for it in alone.classes] == [it.index for it in output.classes]


def test_image_has_no_result_when_a_weight_is_damaged(folder: Path) -> None:
    save_file(weights() | {"_fc.bias": torch.full((CLASSES,), float("inf"))}, str(folder / "model.safetensors"))
    damaged = load_classifier(folder, torch.device("cpu"))
    _, items = damaged.items(ClassifyInput(images=(image(40, 40), image(50, 40)), top=2))
    assert damaged.compute(items) == [None, None]


def test_more_classes_than_the_model_has_are_not_made_up(classifier: Classifier) -> None:
    _, items = classifier.items(ClassifyInput(images=(image(32, 32),), top=64))
    (output,) = classifier.compute(items)
    assert isinstance(output, ClassifyOutput) and len(output.classes) == CLASSES
    assert abs(sum(it.probability_ppm for it in output.classes) - 1_000_000) <= CLASSES


@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_pixels_are_refused_when_the_network_does_not_take_them(
    classifier: Classifier, shape: tuple[int, ...]
) -> None:
    with pytest.raises(JobRefusedError):
        classifier.check({"pixels": torch.zeros(shape)})


@pytest.mark.parametrize("change", [{"strides": [3]}, {"image_size": 8}, {"image_std": [0, 1, 1]}])
def test_model_is_refused_when_its_configuration_makes_no_sense(folder: Path, change: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelError):
        load_classifier(folder, torch.device("cpu"))
