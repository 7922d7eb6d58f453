import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node import durable
from node.errors import AlreadyRunningError
from node.home import ApiInfo, Home, HomeError, find_home

HOLD = """
import sys
from pathlib import Path
from node.home import Home
with Home(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def holder(home: Home):
    """Another process that holds the home until its input ends."""
    command = [sys.executable, "-c", HOLD, str(home.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_home_is_the_flag_then_the_variable_then_xdg_when_asked() -> None:
    environ = {"SOUK_HOME": "/b", "XDG_DATA_HOME": "/c"}
    assert find_home("/a", environ).path == Path("/a")
    assert find_home(None, environ).path == Path("/b")
    assert find_home(None, {"XDG_DATA_HOME": "/c"}).path == Path("/c/souk")
    assert find_home(None, {}).path == Path.home() / ".local/share/souk"


def test_home_belongs_to_its_owner_only_when_created(home: Home) -> None:
    home.create()
    home.create()
    assert home.path.stat().st_mode & 0o777 == 0o700


def test_home_says_who_holds_it_when_another_process_does(home: Home, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(AlreadyRunningError, match=f"pid {holder.pid}, home {home.path}"), home.locked():
        pass
    assert home.is_locked()


def test_home_can_be_held_again_when_its_holder_was_killed(home: Home, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert not home.is_locked()
    with home.locked():
        found = home.lock_holder()
        assert found is not None and found.pid == os.getpid()


def test_home_is_free_when_the_block_ends(home: Home) -> None:
    with home.locked():
        assert home.is_locked()
    assert not home.is_locked()


def test_token_is_made_once_and_private_when_ensured(home: Home) -> None:
    token = home.ensure_token()
    assert len(token) >= 40
    assert home.ensure_token() == token == home.read_token()
    assert home.token_path.stat().st_mode & 0o777 == 0o600


def test_token_is_another_and_private_when_rotated(home: Home) -> None:
    before = home.ensure_token()
    after = home.rotate_token()
    assert after != before and home.read_token() == home.ensure_token() == after
    assert home.token_path.stat().st_mode & 0o777 == 0o600


def test_new_token_is_told_when_only_the_folder_is_not_synced(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_synced(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = home.rotate_token()
    monkeypatch.setattr(durable, "sync_folder", not_synced)
    assert home.rotate_token() == home.read_token() != before


def test_token_is_refused_when_others_may_read_it(home: Home) -> None:
    home.ensure_token()
    home.token_path.chmod(0o644)
    with pytest.raises(HomeError, match="mode 0644"):
        home.read_token()


def test_api_file_comes_back_whole_when_written(home: Home) -> None:
    home.create()
    info = ApiInfo(url="http://127.0.0.1:1", token_file="t", pid=7, peer_id="12D3", addresses=("/ip4/1.2.3.4",))
    assert home.read_api() is None
    home.write_api(info)
    assert home.read_api() == info
    assert sorted(path.name for path in home.path.iterdir()) == ["api.json"]
    home.remove_api()
    assert home.read_api() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"url": "x", "pid": "seven"})])
def test_api_file_is_refused_when_damaged(home: Home, text: str) -> None:
    home.create()
    home.api_path.write_text(text)
    with pytest.raises(HomeError, match="damaged"):
        home.read_api()
