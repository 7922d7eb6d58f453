from pathlib import Path

import pytest
import yaml

from node.config import ApiSection
from node.config_file import load_config

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_that_we_ship_loads(path: Path) -> None:
    loaded = load_config(path, environ={}, required=True)
    assert loaded.config.version == 1 and loaded.origins


def test_testnet_configuration_leaves_every_port_to_the_system() -> None:
    (path,) = [path for path in FILES if path.stem == "testnet"]
    config = load_config(path, environ={}, required=True).config
    assert config.api.bind == "127.0.0.1:0"
    assert config.p2p.listen == ("/ip4/127.0.0.1/tcp/0",)


def test_prometheus_configuration_scrapes_a_node_where_it_serves_by_default() -> None:
    text = (Path(__file__).parent.parent / "configs" / "prometheus.yml").read_text("utf-8")
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    assert scrape["metrics_path"] == "/metrics"
    assert scrape["static_configs"] == [{"targets": [ApiSection().bind]}]
    # A bearer token goes over the wire in the clear: never further than loopback.
    assert ApiSection().bind.startswith("127.")
    assert scrape["authorization"] == {"type": "Bearer", "credentials_file": "souk.token"}
