import contextlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ModelError
from node.models.gguf_check import check_gguf
from tests.models.hostile_files import GGUF_GOOD, GGUF_HOSTILE


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_check_returns_the_bytes_of_the_weights_when_the_header_fits(tmp_path: Path) -> None:
    assert check_gguf(write(tmp_path, GGUF_GOOD)) == 2 * 8


@pytest.mark.parametrize("case", GGUF_HOSTILE)
def test_check_refuses_and_names_the_file_when_it_is_hostile(case: str, tmp_path: Path) -> None:
    data, fault = GGUF_HOSTILE[case]
    with pytest.raises(ModelError, match=r"^model\.gguf: ") as refused:
        check_gguf(write(tmp_path, data))
    assert fault in str(refused.value)


def test_hostile_gguf_are_refused_in_milliseconds(tmp_path: Path, figure: Callable[[str, str], None]) -> None:
    check_gguf(write(tmp_path, GGUF_GOOD))  # imports the library's table of types
    slowest_s = 0.0
    for data, _ in GGUF_HOSTILE.values():
        path = write(tmp_path, data)
        begun_s = time.process_time()
        with pytest.raises(ModelError):
            check_gguf(path)
        slowest_s = max(slowest_s, time.process_time() - begun_s)
    figure("hostile GGUF files", f"{len(GGUF_HOSTILE)} refused, the slowest in {slowest_s * 1000:.2f} ms of CPU")
    assert slowest_s < 0.05


@given(at=st.integers(0, len(GGUF_GOOD) - 8), word=st.integers(0, (1 << 64) - 1))
def test_check_returns_or_refuses_when_eight_bytes_are_anything(
    tmp_path_factory: pytest.TempPathFactory, at: int, word: int
) -> None:
    data = GGUF_GOOD[:at] + struct.pack("<Q", word) + GGUF_GOOD[at + 8 :]
    path = write(tmp_path_factory.getbasetemp(), data)
    with contextlib.suppress(ModelError):
        assert check_gguf(path) <= 20 * len(data)


def test_check_refuses_a_pipe_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="plain file"):
        check_gguf(tmp_path / "model.gguf")
