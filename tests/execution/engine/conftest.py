from pathlib import Path

import pytest
import torch

from node.execution.engine.llama import Llama, load_llama
from node.execution.engine.text import TextCodec, load_codec
from node.execution.shape import read_shape
from tests.execution.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Llama:
    return load_llama(tiny_folder, read_shape(tiny_folder), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def codec(tiny_folder: Path) -> TextCodec:
    return load_codec(tiny_folder)
