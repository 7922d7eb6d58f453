"""Files that are whole, private where they have to be, and on the disk."""

import os
import stat
from pathlib import Path

import pytest

from node import durable
from node.durable import PRIVATE, USUAL, create_file, replace_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [PRIVATE, USUAL])
def test_file_is_replaced_whole_and_nothing_lies_beside_it(path: Path, mode: int) -> None:
    umask = os.umask(0o022)
    try:
        for data in (b"old", b"new and longer"):
            replace_file(path, data, mode=mode)
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"new and longer" and mode_of(path) == mode & ~0o022
    assert list(path.parent.iterdir()) == [path]


def test_old_file_stays_when_the_new_one_is_refused(path: Path) -> None:
    replace_file(path, b"old")

    def refuse(fresh: Path) -> None:
        assert fresh.read_bytes() == b"new" and path.read_bytes() == b"old"
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        replace_file(path, b"new", check=refuse)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_file_is_created_for_its_owner_alone_and_never_replaced(path: Path) -> None:
    create_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_file(path, b"second")
    assert path.read_bytes() == b"first" and mode_of(path) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_bytes_and_name_are_on_the_disk_in_this_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", watched)
    replace_file(path, b"data")
    assert [(name.startswith(".file."), there) for name, there in synced] == [(True, False), (False, True)]
    assert synced[1][0] == path.parent.name
