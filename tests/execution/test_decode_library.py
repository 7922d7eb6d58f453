import os
from pathlib import Path

import pytest

from node.errors import ExecutionError
from node.execution.decode_library import compile_decode


async def test_library_is_compiled_once(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    library = await compile_decode(folder)
    made = library.stat().st_mtime_ns
    assert await compile_decode(folder) == library
    assert library.stat().st_mtime_ns == made
    assert os.listdir(folder) == [library.name]


@pytest.mark.parametrize(
    ("compiler", "cause"),
    [("/bin/false", "status 1"), ("no-such-compiler", "No such file"), ("cc -Dmain=", "")],
    ids=["fails", "is not there", "works"],
)
async def test_missing_compiler_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, cause: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    if not cause:
        assert (await compile_decode(tmp_path)).exists()
        return
    with pytest.raises(ExecutionError, match=cause) as raised:
        await compile_decode(tmp_path)
    assert raised.value.code == "compiler"
    assert "worker.compiled_decode" in str(raised.value) and compiler in str(raised.value)
    assert os.listdir(tmp_path) == []


async def test_source_that_does_not_compile_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc -DWORDS=3")
    with pytest.raises(ExecutionError, match="error"):
        await compile_decode(tmp_path)
    assert os.listdir(tmp_path) == []
