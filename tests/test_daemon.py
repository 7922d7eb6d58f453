"""What the daemon ties together, before any of it runs; what runs is tested in ``tests/integration/``."""

from pathlib import Path

from node.bans import BanList
from node.config_file import ConfigSource
from node.daemon import _Daemon, _party
from node.home import Home
from node.keystore import Ed25519Signer
from node.net.memory import MemoryFabric
from node.reload import LiveConfig
from protocol.envelope import network_id


async def test_node_whose_workers_still_start_is_not_ready_after_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    source = ConfigSource(path=path, environ={})
    live = LiveConfig(source, source.load())
    signer = Ed25519Signer(bytes(32))
    party = _party(Home(tmp_path), signer, network_id({"name": "test"}))
    daemon = _Daemon(Home(tmp_path), live, party, MemoryFabric().network("a", signer.peer_id), bans=BanList())
    starting = daemon._view.readiness()
    path.write_text("[market]\nqueue_max = 3\n")
    assert (await live.reload()).changed
    assert daemon._view.readiness() == starting
