import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import ModelError, ModelKeptError
from node.models.holding import Holds, held_alone, is_held
from node.models.stored import MANIFEST_NAME
from protocol.units import ModelId

MODEL = ModelId(b"m" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / MODEL.hex()
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes(b"")
    os.utime(folder / MANIFEST_NAME, (1, 1))
    return folder


def test_model_is_not_to_be_had_alone_while_anybody_serves_it(folder: Path) -> None:
    first, second = Holds(folder.parent), Holds(folder.parent)
    first.take([MODEL])
    second.take([MODEL])
    first.release(MODEL)
    with (
        pytest.raises(ModelKeptError, match="tiny: a daemon on this machine serves it"),
        held_alone(folder, "tiny"),
    ):
        pass
    assert is_held(folder)
    second.release_all()
    assert not is_held(folder)
    with held_alone(folder, "tiny"):
        assert is_held(folder)


def test_taking_a_model_notes_that_it_is_used_now(folder: Path) -> None:
    holds = Holds(folder.parent)
    holds.take([MODEL])
    assert (folder / MANIFEST_NAME).stat().st_mtime > 1
    holds.release_all()


def test_model_that_is_gone_or_being_removed_is_passed_over(folder: Path) -> None:
    holds = Holds(folder.parent)
    holds.take([ModelId(b"?" * 32)])
    with held_alone(folder, "tiny"):
        holds.take([MODEL])
    assert not is_held(folder)
    with pytest.raises(ModelError, match="cannot be locked"), held_alone(folder.parent / "none", "none"):
        pass


@pytest.mark.slow
def test_hold_ends_with_its_process_when_that_is_killed(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from node.models.holding import Holds\n"
        "Holds(Path(sys.argv[1])).take([b'm' * 32]); print('held', flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", code, str(folder.parent)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None and daemon.stdout.readline() == b"held\n"
        assert is_held(folder)
        daemon.kill()
    assert not is_held(folder)
