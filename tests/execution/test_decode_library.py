import os
import time
from pathlib import Path

import pytest

from node.errors import ExecutionError
from node.execution.decode_library import compile_decode


def refused(folder: Path, *, seconds_max: float = 60.0) -> str:
    with pytest.raises(ExecutionError) as raised:
        compile_decode(folder, seconds_max=seconds_max)
    assert raised.value.code == "compiler" and "worker.compiled_decode" in str(raised.value)
    assert not folder.exists() or os.listdir(folder) == []
    return str(raised.value)


@pytest.mark.slow
def test_library_is_compiled_once_and_again_when_it_does_not_load(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    library = compile_decode(folder)
    made = library.stat().st_mtime_ns
    assert compile_decode(folder) == library and library.stat().st_mtime_ns == made
    # As a power cut leaves it, beside that of an older version.
    library.write_bytes(b"")
    (folder / "decode-0123456789abcdef.so").write_bytes(b"")
    assert compile_decode(folder) == library and library.stat().st_size > 0
    assert os.listdir(folder) == [library.name]


@pytest.mark.parametrize(
    ("compiler", "cause"),
    [("/bin/false", "exit status 1"), ("no-such-compiler", "No such file"), ("cc -D__clang__", "it is Clang")],
)
def test_compiler_that_cannot_be_used_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, cause: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    said = refused(tmp_path)
    assert cause in said and repr(compiler.split()[0]) in said


def test_source_that_does_not_compile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -DWORDS=3")
    assert "error: " in refused(tmp_path)


@pytest.mark.slow
def test_library_that_does_not_load_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -Ddecode=another_name")
    assert "AttributeError" in refused(tmp_path / "compiled")


@pytest.mark.slow
def test_compiler_that_hangs_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\nsleep 60 & wait\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    began = time.monotonic()
    assert "no end within 0.3 s" in refused(tmp_path / "compiled", seconds_max=0.3)
    # Its child holds our end of its output for as long as it lives.
    assert time.monotonic() - began < 30
