"""A real daemon that is told things while it runs: another configuration, a bad one, and to take no more jobs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
READY_S = 60.0
CONFIG = """\
[node]
role = "client"
[api]
bind = "127.0.0.1:0"
[p2p]
listen = ["/ip4/127.0.0.1/tcp/0"]
[market]
price_max = 1000
[log]
format = "text"
"""


class Node:
    """One ``souk serve`` in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "config.toml"
        home.mkdir()
        self.config.write_text(CONFIG)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SOUK_")}
        self.environ = environ | {"SOUK_HOME": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.cli", "serve"], stderr=subprocess.PIPE, text=True, env=self.environ
        )

    def wait_for(self, words: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return line
        raise AssertionError(f"ended without {words!r}")

    def souk(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "node.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environ, timeout=READY_S
        )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "home")
    try:
        node.wait_for("api ")
        yield node
    finally:
        node.process.terminate()
        node.process.communicate(timeout=READY_S)


def test_daemon_follows_a_new_configuration_and_no_bad_one_and_drains(node: Node) -> None:
    # By hand, with what has to wait.
    node.config.write_text(CONFIG.replace("1000", "2000").replace('"client"', '"worker"'))
    told = node.souk("config", "reload").stdout.splitlines()
    assert told == [
        f"market.price_max: 1000 → 2000  ({node.config}:8)",
        f"node.role: stays client until a restart brings worker  ({node.config}:2)",
    ]
    assert node.souk("config", "get", "market.price_max").stdout == "2000\n"

    # By signal: the log tells.
    node.config.write_text(CONFIG.replace("1000", "3000"))
    node.process.send_signal(signal.SIGHUP)
    assert "market.price_max" in node.wait_for("setting changed")
    shown = node.souk("config", "show", "--origin").stdout
    assert f"price_max = 3000 # {node.config}:8" in " ".join(shown.split())

    # A bad file changes nothing, whoever asks.
    node.config.write_text(CONFIG.replace("1000", '"much"') + "levle = 1\n")
    node.process.send_signal(signal.SIGHUP)
    assert "price_max" in node.wait_for("configuration not reloaded")
    refused = node.souk("config", "reload")
    assert refused.returncode == 3 and f"{node.config}:8: market.price_max: expected int" in refused.stderr
    assert f"{node.config}:11: log.levle: unknown key (did you mean level?)" in refused.stderr
    assert node.souk("config", "get", "market.price_max").stdout == "3000\n"

    # Drained and open again, by hand and by policy.
    assert "drained by hand" in node.souk("drain").stdout
    assert "drained by hand" in node.souk("status").stdout
    assert node.souk("resume").stdout == "open to peers\n"
    node.config.write_text(CONFIG + '[owner]\nhours = ["mon 00:00-00:01"]\n')
    assert "owner.hours" in node.souk("config", "reload").stdout
    status = node.souk("status").stdout
    assert "outside of its hours" in status or "open to peers" in status  # for one minute of the week it is open
