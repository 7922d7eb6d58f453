"""Files that are whole, private where they have to be, and on the disk."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from node import durable
from node.durable import PRIVATE, USUAL, NotSyncedError, create_file, replace_file, sync_folder


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


WRITERS = [create_file, replace_file]


def refuse_folders(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``fsync`` of folders, and of nothing else, fail with ``number``."""
    fsync = os.fsync

    def fsync_of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", fsync_of_files)


@pytest.mark.parametrize("write", WRITERS)
def test_file_that_stands_is_told_apart_when_the_disk_did_not_confirm_its_name(
    write: Callable[[Path, bytes], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(errno.EIO, monkeypatch)
    with pytest.raises(NotSyncedError, match=r"the new file is there, but .*Input/output error") as told:
        write(path, b"new")
    assert path.read_bytes() == b"new" and told.value.filename == str(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
@pytest.mark.parametrize("write", WRITERS)
def test_file_is_written_when_its_folder_cannot_be_synced_at_all(
    write: Callable[[Path, bytes], None], number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_folders(number, monkeypatch)
    write(path, b"new")
    sync_folder(path.parent)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_file_is_created_and_never_replaced_where_there_are_no_links(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_old: Path, new: Path) -> None:
        raise OSError(number, os.strerror(number), str(new))

    monkeypatch.setattr(durable.os, "link", refuse)
    create_file(path, b"first")
    with pytest.raises(FileExistsError) as told:
        create_file(path, b"second")
    assert told.value.filename == str(path)
    assert path.read_bytes() == b"first" and mode_of(path) == 0o600 and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_error_names_the_file_that_was_to_be_written(write: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as told:
        write(path, b"data")
    assert told.value.filename == str(path) and ".file." not in str(told.value)
