import os

import pytest

from node.home import ApiInfo, Home
from tests.cli.fakes import PEER, FakeDaemon, souk

STATUS = {
    "schema": 1, "name": "n", "peer_id": PEER, "version": "0.1.0", "network": "main", "role": "worker",
    "ready": True, "uptime_s": 61, "addresses": ["/ip4/127.0.0.1/tcp/1"], "peers_connected": 2, "models": ["smol"],
    "devices": ["cpu:0"], "jobs": {"running": 1, "waiting": 0}, "earned_microcredits": 1200,
    "spent_microcredits": 0,
}  # fmt: skip


def test_status_shows_one_screen_when_the_node_is_ready(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/status", STATUS)
    ran = souk("status")
    assert ran.code == 0 and not ran.err
    for part in ("n (ready), worker", PEER, "61.0 s", "1 running, 0 waiting", "1,200 µc"):
        assert part in ran.out


def test_status_ends_with_1_when_the_node_is_not_ready(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/status", STATUS | {"ready": False})
    ran = souk("status", "-o", "json")
    assert ran.code == 1 and ran.json()["ready"] is False


def test_stop_asks_the_daemon_to_end(daemon: FakeDaemon, home: Home) -> None:
    daemon.answer("POST /api/v1/shutdown", {}, 202)
    # A process that has long ended: there is nothing left to wait for.
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitpid(ended, 0)
    home.write_api(ApiInfo(url=daemon.url, token_file="", pid=ended, peer_id=PEER, addresses=()))
    ran = souk("stop")
    assert (ran.code, ran.err) == (0, "stopped\n")
    assert daemon.asked[0][0] == "POST /api/v1/shutdown"


def test_env_points_openai_clients_at_the_daemon(daemon: FakeDaemon, home: Home) -> None:
    ran = souk("env")
    assert ran.out.splitlines() == [
        f"export OPENAI_BASE_URL={daemon.url}/v1",
        f"export OPENAI_API_KEY={home.read_token()}",
    ]


def test_env_says_what_to_do_when_there_is_no_token_yet() -> None:
    ran = souk("env")
    assert ran.code == 4 and "souk serve" in ran.err


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_status_prints_what_the_daemon_said_when_json_is_wanted(daemon: FakeDaemon, form: str) -> None:
    daemon.answer("GET /api/v1/status", STATUS)
    assert souk("status", "-o", form).json() == STATUS
