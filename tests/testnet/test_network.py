import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from node.config_file import load_config
from node.errors import AlreadyRunningError
from node.testnet import network as network_module
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Plan, TestnetError, node_config

FAKE = (sys.executable, str(Path(__file__).parent / "fake_node.py"))
pytestmark = pytest.mark.slow


def make_plan(folder: Path, behaviour: str = "auto") -> Plan:
    base = f'version = 1\n[p2p]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\nnetwork = "{os.getpid()}"\n'
    return Plan(
        folder=folder / "net",
        nodes=3,
        providers=1,
        models_dir=folder,
        base_config=base + f'[log]\nformat = "{behaviour}"\n',
        program=FAKE,
    )


@pytest.fixture
def networks() -> Iterator[list[Network]]:
    """Networks that a test starts; whatever it does, none outlives it."""
    started: list[Network] = []
    yield started
    for network in started:
        network.down()


def start(networks: list[Network], plan: Plan) -> Network:
    network = Network(plan.folder)
    networks.append(network)
    network.up(plan, Interrupts())
    return network


def running(folder: Path) -> list[int]:
    """Return the processes, nodes and workers, that were started for ``folder`` and still run."""
    workers = [int(path.read_text()) for path in folder.rglob("worker")]
    found = [p for p in psutil.process_iter() if p.pid in workers or str(folder) in " ".join(_command(p))]
    return [process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_network_starts_its_nodes_and_leaves_none_when_it_goes_down(
    tmp_path: Path, networks: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUK_NODE_NAME", "of the shell")
    plan = make_plan(tmp_path)
    network = start(networks, plan)
    assert [(node.name, node.role) for node in network.nodes] == [
        ("node-1", "worker"),
        ("node-2", "client"),
        ("node-3", "client"),
    ]
    assert [node.peer_id for node in Network.load(plan.folder).nodes] == [f"peer of node-{n}" for n in (1, 2, 3)]
    seen = [json.loads((plan.folder / f"node-{n}" / "seen").read_text()) for n in (1, 2, 3)]
    assert [config["p2p"]["bootstrap"] for config in seen] == [[], *[["/ip4/127.0.0.1/tcp/1/p2p/node-1"]] * 2]
    assert "settings []" in network.nodes[0].log_tail()
    assert len(running(plan.folder)) == 6

    assert Network.load(plan.folder).down() == []
    assert running(plan.folder) == []
    with pytest.raises(TestnetError, match="no testnet in"):
        Network.load(plan.folder)


def test_node_that_was_killed_comes_back_at_its_address(tmp_path: Path, networks: list[Network]) -> None:
    network = start(networks, replace(make_plan(tmp_path), nodes=1))
    before = network.nodes[0]
    psutil.Process(before.pid).kill()
    after = network.restart(before, program=FAKE)
    assert (after.pid != before.pid, after.name, after.home) == (True, before.name, before.home)
    assert after.process() and Network.load(network.folder).nodes == [after]


def test_network_leaves_no_process_and_shows_the_log_when_a_node_dies(
    tmp_path: Path, networks: list[Network]
) -> None:
    plan = make_plan(tmp_path, "dies:node-2")
    with pytest.raises(TestnetError, match=r"node-2 ended before it was ready.*\n.*\nnode-2 cannot start"):
        start(networks, plan)
    assert running(plan.folder) == []


def test_network_leaves_no_process_when_interrupted_while_it_starts(
    tmp_path: Path, networks: list[Network]
) -> None:
    plan = make_plan(tmp_path, "silent:node-2")
    interrupts = Interrupts()
    network = Network(plan.folder)
    networks.append(network)
    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        network.up(plan, interrupts)
    assert running(plan.folder) == []


def test_network_kills_a_node_that_does_not_end(
    tmp_path: Path, networks: list[Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "STOP_S", 0.3)
    plan = make_plan(tmp_path, "stubborn:node-3")
    assert start(networks, plan).down() == ["node-3"]
    assert running(plan.folder) == []


def test_network_is_refused_when_its_folder_is_in_use(tmp_path: Path, networks: list[Network]) -> None:
    plan = replace(make_plan(tmp_path), nodes=1)
    start(networks, plan)
    with pytest.raises(AlreadyRunningError, match="node-1"):
        Network(plan.folder).up(plan, Interrupts())
    assert len(running(plan.folder)) == 2


def test_node_is_found_by_name_or_number(tmp_path: Path, networks: list[Network]) -> None:
    network = start(networks, replace(make_plan(tmp_path), nodes=1))
    assert network.find("1") == network.find("node-1") == network.nodes[0]
    with pytest.raises(TestnetError, match="there are node-1"):
        network.find("9")


def test_node_is_not_taken_for_a_later_process_with_its_number(tmp_path: Path, networks: list[Network]) -> None:
    network = start(networks, replace(make_plan(tmp_path), nodes=1))
    (node,) = network.nodes
    assert node.process() is not None
    assert replace(node, started_at=node.started_at - 60).process() is None


@pytest.mark.parametrize("role", ["worker", "client"])
def test_node_config_loads_whatever_its_values_hold(tmp_path: Path, role: str) -> None:
    plan = replace(
        make_plan(tmp_path), models_dir=Path('/a "b"\\c'), base_config="version = 1\n[api]\nmax_queue = 3\n"
    )
    path = tmp_path / "config.toml"
    path.write_text(node_config(plan, name="node-7", role=role, bootstrap=("/ip4/1.2.3.4/tcp/1/p2p/A",)))
    config = load_config(path, environ={}).config
    assert (config.node.name, config.node.role, config.api.max_queue) == ("node-7", role, 3)
    assert config.p2p.bootstrap == ("/ip4/1.2.3.4/tcp/1/p2p/A",)
    assert config.models.dir == ('/a "b"\\c' if role == "worker" else "")
