from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from node.execution.engine.pth_weights import convert


def test_tensors_are_taken_and_counters_left(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6.0).view(2, 3).T, "steps": torch.tensor(7)}, tmp_path / "in.pth")
    convert(str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {"w"} and found["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_file_is_refused_when_it_holds_more_than_tensors(tmp_path: Path) -> None:
    torch.save({"w": [1, 2]}, tmp_path / "in.pth")
    with pytest.raises(TypeError, match="named tensors"):
        convert(str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"))
