import json
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


def test_status_shows_what_confines_each_worker_and_whether_a_spare_waits(daemon: FakeDaemon) -> None:
    serving = {"device": "cpu", "state": "serving", "jail": "landlock+seccomp", "spare": "loaded", "deaths": 0}
    ill = {"device": "cuda:0", "state": "quarantined", "jail": None, "spare": "none", "deaths": 3}
    daemon.answer("GET /api/v1/status", STATUS | {"workers": [serving, ill]})
    out = souk("status").out
    assert "cpu serving, jail landlock+seccomp, spare loaded" in out
    assert "cuda:0 quarantined, jail not known yet, 3 deaths in ten minutes" in out


def test_status_ends_with_1_when_the_node_is_not_ready(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/status", STATUS | {"ready": False})
    ran = souk("status", "-o", "json")
    assert ran.code == 1 and ran.json()["ready"] is False


def test_status_is_followed_line_by_line_until_the_daemon_goes(daemon: FakeDaemon) -> None:
    states = [STATUS, STATUS | {"name": "later"}]
    daemon.answer("GET /api/v1/events", [f"data: {json.dumps({'at_ms': 1, 'status': it})}" for it in states])
    ran = souk("status", "--watch", "-o", "jsonl")
    assert [json.loads(line)["name"] for line in ran.out.splitlines()] == ["n", "later"]
    assert ran.code == 4 and "it is stopping" in ran.err
    once = souk("status", "--watch")
    assert once.code == 0 and "n (ready), worker" in once.out and "later" not in once.out


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


def test_status_says_why_peers_are_kept_out_and_until_when(daemon: FakeDaemon) -> None:
    gate = {"open": False, "drained": False, "reasons": ["outside of its hours"], "opens_at_ms": 0, "jobs": 2}
    daemon.answer("GET /api/v1/status", STATUS | {"gate": gate | {"hands_back_in_s": 30}})
    ran = souk("status")
    assert "closed to peers: outside of its hours · opens Thu " in ran.out
    assert "2 jobs of peers still run, handed back in 30.0 s" in ran.out


@pytest.mark.parametrize(
    ("shell", "line"), [("fish", "set -gx OPENAI_BASE_URL {};"), ("dotenv", "OPENAI_BASE_URL={}")]
)
def test_env_writes_for_the_shell_that_is_named(daemon: FakeDaemon, shell: str, line: str) -> None:
    assert souk("env", "--shell", shell).out.splitlines()[0] == line.format(f"{daemon.url}/v1")


def test_env_points_openai_clients_at_the_daemon(
    daemon: FakeDaemon, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
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
