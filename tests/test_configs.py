import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.cli.init import PROFILES
from node.config import ApiSection, Config
from node.config_file import load_config

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.toml"))
# What prometheus-client and Prometheus itself add.
FROM_LIBRARIES = {
    "process_cpu_seconds_total": {"instance", "job"},
    "process_resident_memory_bytes": {"instance", "job"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_configuration_that_we_ship_loads(path: Path) -> None:
    loaded = load_config(path, environ={}, required=True)
    assert loaded.config.version == 1 and loaded.origins


def test_owners_policy_that_stands_as_a_comment_loads_when_it_is_uncommented(tmp_path: Path) -> None:
    text = (ROOT / "configs" / "gpu.toml").read_text("utf-8")
    (section,) = re.findall(r"^# \[owner\]\n(?:# .*\n)+", text, re.MULTILINE)
    path = tmp_path / "config.toml"
    path.write_text(text.replace(section, re.sub(r"^# ", "", section, flags=re.MULTILINE)), "utf-8")
    owner = load_config(path, environ={}, required=True).config.owner
    assert owner.hours and owner.idle_s == 600 and not owner.on_battery


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


def test_every_configuration_that_we_ship_is_a_profile_of_init() -> None:
    assert {path.stem for path in FILES} == set(PROFILES)


def test_private_network_is_not_the_one_that_nodes_join_by_default() -> None:
    (path,) = [path for path in FILES if path.stem == "private"]
    config, default = load_config(path, environ={}, required=True).config, Config()
    assert config.p2p.network != default.p2p.network
    # Among one's own machines no limit may stop a job that costs what a job may cost.
    assert config.market.spend_new_peer >= config.market.price_max > default.market.price_max
    assert config.market.credit_new_peer >= config.market.price_max


# The Grafana dashboard: every metric and every label in it is one that a node has.


def dashboard() -> Any:  # JSON of Grafana's own shape
    return json.loads((ROOT / "configs" / "grafana.json").read_text("utf-8"))


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def metrics_in_code() -> Iterator[tuple[str, set[str]]]:
    """Yield each metric that the node's source names, as Prometheus sees it, with its labels."""
    for module in ("node/metrics.py", "node/api/scrape.py"):
        for call in ast.walk(ast.parse((ROOT / module).read_text("utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            kind, name = call.func.id, call.args[0] if call.args else None
            if not isinstance(name, ast.Constant) or not str(name.value).startswith("souk_"):
                continue
            given = [*call.args[1:], *(it.value for it in call.keywords if it.arg == "labels")]
            labels = {
                str(c.value)
                for it in given
                if isinstance(it, ast.Tuple)
                for c in it.elts
                if isinstance(c, ast.Constant)
            }
            # This one gives its labels itself.
            labels |= {"role", "model"} if kind == "_job_gauge" else set()
            suffixes = {"Histogram": ("_bucket", "_sum", "_count")}.get(
                kind, ("_total" if "Counter" in kind else "",)
            )
            extra = {"le"} if kind == "Histogram" else set()
            for suffix in suffixes:
                yield f"{name.value!s}{suffix}", labels | extra


def gpu_metrics_in_code() -> Iterator[tuple[str, set[str]]]:
    text = (ROOT / "node/api/scrape.py").read_text("utf-8")
    assert 'f"souk_gpu_{name}"' in text
    for name in re.findall(r'^        \("(\w+)", "', text, re.MULTILINE):
        yield f"souk_gpu_{name}", {"device", "name"}


def known_metrics() -> dict[str, set[str]]:
    ours = {name: labels | {"instance", "job"} for name, labels in (*metrics_in_code(), *gpu_metrics_in_code())}
    return ours | FROM_LIBRARIES


def test_metrics_are_found_in_the_source() -> None:
    known = known_metrics()
    assert len(known) > 25
    assert known["souk_jobs_total"] >= {"role", "state", "code"}
    assert known["souk_time_to_first_token_seconds_bucket"] >= {"le", "model", "role"}
    assert known["souk_peers"] >= {"state"} and known["souk_gpu_power_watts"] >= {"device"}


@pytest.mark.parametrize("expression", expressions())
def test_dashboard_asks_for_metrics_and_labels_that_exist(expression: str) -> None:
    known = known_metrics()
    names = re.findall(r"\b((?:souk|process|python)_\w+)", expression)
    assert len(names) == 1 and names[0] in known, expression
    labels = set(re.findall(r'(\w+)=~?"', expression))
    for listed in re.findall(r"by \(([^)]*)\)", expression):
        labels |= {label.strip() for label in listed.split(",")}
    assert labels <= known[names[0]], expression
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    # A rate of a gauge, or a counter that is shown bare in a graph, says nothing.
    assert not ("rate(" in expression and not names[0].endswith(("_total", "_bucket"))), expression


def test_dashboard_legends_name_labels_that_the_expression_keeps() -> None:
    known = known_metrics()
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            (name,) = re.findall(r"\b((?:souk|process|python)_\w+)", target["expr"])
            kept = known[name]
            if listed := re.findall(r"by \(([^)]*)\)", target["expr"]):
                kept = {label.strip() for label in listed[-1].split(",")}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, target


def test_dashboard_shows_all_that_a_node_counts_of_the_market() -> None:
    shown = " ".join(expressions())
    ours = {name for name in known_metrics() if name.startswith("souk_") and not name.endswith(("_sum", "_count"))}
    # What is in no graph on purpose: the list of nodes to choose from, and what confines their workers.
    assert {name for name in ours if not re.search(rf"\b{name}\b", shown)} == {
        "souk_build_info",
        "souk_worker_jail",
    }


def test_dashboard_panels_do_not_overlap_and_take_the_source_that_is_chosen() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
