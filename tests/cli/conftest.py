"""A home of its own for every command test, and a fake daemon in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.home import Home
from tests.cli.fakes import FakeDaemon, serving


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("SOUK_API", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOUK_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def daemon(home: Home) -> Iterator[FakeDaemon]:
    with serving(home) as fake:
        yield fake
