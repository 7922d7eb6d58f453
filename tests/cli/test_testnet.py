import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from node.cli.exits import CliError
from node.cli.testnet import default_folder, make_plan
from node.home import Home
from node.testnet.network import Network, Node
from tests.cli.fakes import serving, souk
from tests.testnet.mutants import accepted_before_fsync


@pytest.fixture
def network(tmp_path: Path) -> Network:
    """A network whose one node is this process: nothing here may stop it."""
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "log").write_text("a line\n")
    started_at = psutil.Process().create_time()
    node = Node(
        name="node-1", role="client", home=str(tmp_path / "node-1"), pid=os.getpid(), started_at=started_at
    )
    made = Network(tmp_path, [node])
    made.save()
    return made


@pytest.mark.parametrize("verb", [["status"], ["down"], ["logs", "1"], ["kill", "1"], ["env", "1"]])
def test_verbs_say_how_to_start_when_there_is_no_testnet(tmp_path: Path, verb: list[str]) -> None:
    ran = souk("testnet", *verb, "--dir", str(tmp_path))
    assert ran.code == 1 and "souk testnet up" in ran.err


def test_status_ends_with_1_when_a_node_has_ended(network: Network) -> None:
    folder = str(network.folder)
    assert souk("testnet", "status", "--dir", folder).code == 0
    ended = Node(name="node-2", role="client", home="", pid=network.nodes[0].pid, started_at=1.0)
    network.nodes.append(ended)
    network.save()
    ran = souk("testnet", "status", "--dir", folder, "-o", "json")
    assert ran.code == 1
    assert [node["running"] for node in ran.json()["nodes"]] == [True, False]


def test_up_ends_with_9_when_its_folder_is_in_use(network: Network) -> None:
    ran = souk("testnet", "up", "--dir", str(network.folder), "--nodes", "1", "--providers", "0")
    assert ran.code == 9 and "node-1" in ran.err


def test_logs_print_what_a_node_wrote(network: Network) -> None:
    assert souk("testnet", "logs", "1", "--dir", str(network.folder)).out == "a line\n"


def test_kill_ends_with_5_when_the_node_has_ended(network: Network) -> None:
    network.nodes[0] = Node(name="node-1", role="client", home="", pid=network.nodes[0].pid, started_at=1.0)
    network.save()
    assert souk("testnet", "kill", "node-1", "--dir", str(network.folder)).code == 5


def test_plan_is_refused_when_it_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="at most 2 providers"):
        make_plan(tmp_path, 2, 3)
    with pytest.raises(CliError, match="scripts/setup"):
        make_plan(tmp_path, 2, 1, models_dir=tmp_path / "none")


def test_testnet_is_kept_with_the_state_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_folder() == Path("/state/souk/testnet")


def test_up_says_so_when_its_folder_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    ran = souk("testnet", "up", "--dir", str(path), "--nodes", "1", "--providers", "0")
    assert ran.code == 1 and "cannot be made" in ran.err


@pytest.mark.slow
def test_simulate_tells_what_came_of_a_seed() -> None:
    ran = souk("--output", "json", "testnet", "simulate", "--scenario", "calm", "--seed", "3", "--jobs", "2")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report["seed"] == 3 and report["violations"] == [] and len(report["trace"]) == 64
    assert report["orders"]["finished"] >= 3, "two orders, and one more of each requester when all has settled"


@pytest.mark.slow
def test_simulate_shows_the_shortest_history_when_a_rule_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted_before_fsync(monkeypatch)
    ran = souk("-o", "json", "testnet", "simulate", "--scenario", "calm", "--seed", "3", "--seeds", "9")
    assert ran.code == 1 and "looking for a shorter run" in ran.err
    first, shortest = (json.loads(part + "}") for part in ran.out.split("\n}\n") if part)
    assert first["violations"] and len(shortest["items"]) == 1
    assert shortest["history"] and shortest["seed"] == 3
    again = souk("-o", "json", *shortest["again"].split()[1:])
    assert again.code == 1 and json.loads(again.out)["trace"] == shortest["trace"]


def test_simulate_names_the_scenarios_when_it_knows_no_such() -> None:
    ran = souk("testnet", "simulate", "--scenario", "nonsense")
    assert ran.code == 2 and "overload" in ran.err


def test_exec_runs_a_verb_on_a_node_and_ends_with_its_code(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUK_API", "http://127.0.0.1:1")
    folder = str(network.folder)
    ran = souk("testnet", "exec", "--dir", folder, "1", "--", "config", "path", "-o", "json")
    assert ran.code == 0 and ran.json()["path"] == str(tmp_path / "node-1" / "config.toml")
    home = Home(tmp_path / "node-1")
    with serving(home) as daemon:
        network.nodes[0] = replace(network.nodes[0], url=daemon.url)
        network.save()
        daemon.answer("GET /api/v1/devices", {"schema": 1, "devices": []})
        assert souk("testnet", "exec", "1", "devices", "-o", "json", "--dir", folder).json()["devices"] == []
        ran = souk("testnet", "exec", "1", "devices", "--dir", folder, "-v")
        assert "GET" in ran.err
        ran = souk("testnet", "exec", "1", "job", "show", "abcd", "--dir", folder, "--timeout", "0.000001")
        assert ran.code == 7
        assert f"{daemon.url}/v1" in souk("testnet", "env", "1", "--dir", folder).out
    assert souk("testnet", "exec", "1", "--dir", folder, "devices").code == 4
