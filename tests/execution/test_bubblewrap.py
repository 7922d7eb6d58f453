import logging
from pathlib import Path

import pytest

from node.execution.bubblewrap import Bubblewrap, box_command, find_bubblewrap
from node.execution.jail import Jail


def shown(command: list[str], option: str = "--ro-bind-try") -> dict[str, str]:
    """What is shown inside, and where from."""
    return {command[at + 2]: command[at + 1] for at, word in enumerate(command) if word == option}


def test_box_shows_what_its_worker_reads_and_no_folder_above(tmp_path: Path) -> None:
    (tmp_path / "home" / "models").mkdir(parents=True)
    store = str(tmp_path / "home" / "models")
    found = shown(box_command(Jail(mode="auto", readable=(store,), bubblewrap="bwrap"), cuda=False))
    assert found[store] == store
    assert not {"/", "/tmp", "/home", str(tmp_path), str(tmp_path / "home")} & found.keys()
    assert not any(place.startswith(("/proc", "/dev")) for place in found)


def test_box_shows_what_lies_behind_a_link_at_both_places(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "models", tmp_path / "models"
    real.mkdir(parents=True)
    link.symlink_to(real)
    found = shown(box_command(Jail(mode="auto", readable=(str(link),), bubblewrap="bwrap"), cuda=False))
    assert found[str(link)] == found[str(real)] == str(real)


def test_box_shows_nothing_twice_and_nothing_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    paths = (str(tmp_path / "models" / "tiny"), str(tmp_path / "models"), str(tmp_path / "none"))
    found = shown(box_command(Jail(mode="auto", readable=paths, bubblewrap="bwrap"), cuda=False))
    assert [place for place in found if place.startswith(str(tmp_path))] == [str(tmp_path / "models")]


def test_box_lets_its_worker_write_only_where_the_jail_does(tmp_path: Path) -> None:
    command = box_command(Jail(mode="auto", bubblewrap="bwrap"), cuda=False)
    assert not {"--bind", "--tmpfs"} & set(command)
    command = box_command(Jail(mode="auto", writable=(str(tmp_path),), bubblewrap="bwrap"), cuda=False)
    assert shown(command, "--bind") == {str(tmp_path): str(tmp_path)}
    assert command[-5:] == ["--remount-ro", "/dev", "--remount-ro", "/", "--"]


def test_box_of_a_gpu_has_the_drivers_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")

    def paths(*, cuda: bool) -> tuple[str, ...]:
        return ("/dev/null", "/sys", *nodes) if cuda else ()

    monkeypatch.setattr("node.execution.bubblewrap.system_paths", paths)
    command = box_command(Jail(mode="auto", bubblewrap="bwrap"), cuda=True)
    assert shown(command, "--dev-bind-try") == {node: node for node in nodes}
    assert shown(command)["/sys"] == "/sys"
    assert "--dev-bind-try" not in box_command(Jail(mode="auto", bubblewrap="bwrap"), cuda=False)


def test_nothing_is_said_where_bubblewrap_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    caplog.set_level(logging.INFO)
    assert find_bubblewrap(cuda=False) == ""
    assert not caplog.records


def test_box_shows_a_store_in_shared_memory_where_the_system_has_only_devices() -> None:
    found = shown(box_command(Jail(mode="auto", readable=("/dev/shm",), bubblewrap="bwrap"), cuda=False))
    assert "/dev/shm" in found
    assert not {"/dev/null", "/dev/urandom", "/proc"} & found.keys()


def test_bubblewrap_is_not_used_when_what_it_should_show_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*, cuda: bool) -> tuple[str, ...]:
        raise PermissionError("closed")

    (tmp_path / "bwrap").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("node.execution.bubblewrap.system_paths", refuse)
    caplog.set_level(logging.INFO)
    assert find_bubblewrap(cuda=False) == ""
    assert [vars(record)["cause"] for record in caplog.records] == ["closed"]


def test_bubblewrap_is_given_up_once_and_for_good(caplog: pytest.LogCaptureFixture) -> None:
    bubblewrap = Bubblewrap("/usr/bin/bwrap")
    for cause in ("it is gone", "it is still gone"):
        bubblewrap.give_up(cause)
    assert bubblewrap.program == ""
    assert [vars(record)["cause"] for record in caplog.records] == ["it is gone"]


def test_log_says_an_installed_bubblewrap_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    caplog.set_level(logging.INFO)
    assert find_bubblewrap(cuda=False) == ""
    (record,) = caplog.records
    assert record.message == "bubblewrap not used"
    assert vars(record)["cause"] == "bwrap: No permissions to create a new namespace"
