from pathlib import Path

import pytest

from node.config import Config
from node.config_file import Loaded, load_config, locate
from node.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def problems(path: Path, text: str = "", *, environ: dict[str, str] | None = None, settings=()) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ=environ or {}, settings=settings)
    return [problem.replace(str(path), "config.toml") for problem in caught.value.problems]


def test_loader_gives_the_defaults_when_there_is_no_file(path: Path) -> None:
    loaded = load_config(path, environ={})
    assert loaded == Loaded(config=Config(), origins={})
    assert loaded.origin("api.bind") == "default"


def test_loader_refuses_when_a_file_that_was_named_is_missing(path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(path, environ={}, required=True)


def test_loader_lets_later_sources_win_and_says_which_when_several_speak(path: Path) -> None:
    path.write_text('[node]\nname = "file"\nrole = "client"\n[api]\nmax_queue = 3\n')
    loaded = load_config(
        path, environ={"SOUK_NODE_NAME": "env", "SOUK_API_MAX_QUEUE": "5"}, settings=["node.name = set"]
    )
    assert (loaded.config.node.name, loaded.config.api.max_queue) == ("set", 5)
    assert loaded.origin("node.name") == "--set node.name"
    assert loaded.origin("api.max_queue") == "env SOUK_API_MAX_QUEUE"
    assert loaded.origin("node.role") == f"{path}:3"


def test_loader_reports_every_fault_with_its_line_when_there_are_several(path: Path) -> None:
    text = 'version = 2\n[api]\n# comment\nmax_queue = "many"\nbimd = 1\n\n[nod]\nname = 1\n[worker]\nslots = 0\n'
    found = problems(
        path, text, environ={"SOUK_API_MAX_QEUE": "1", "SOUK_WORKER_THREADS": "two"}, settings=["api.max_queue"]
    )
    assert found == [
        "config.toml:1: version: expected 1 (got 2)",
        "config.toml:4: api.max_queue: expected int, got str (got 'many')",
        "config.toml:5: api.bimd: unknown key (did you mean bind?)",
        "config.toml:7: [nod]: unknown section (did you mean node?)",
        "config.toml:10: worker.slots: expected int >= 1 (got 0)",
        "env SOUK_API_MAX_QEUE: unknown setting (did you mean SOUK_API_MAX_QUEUE?)",
        "env SOUK_WORKER_THREADS: expected int, got str (got 'two')",
        "--set api.max_queue: expected section.key=value",
    ]


def test_loader_names_line_and_column_when_the_file_is_no_toml(path: Path) -> None:
    (problem,) = problems(path, "[api]\nbind = \n")
    assert problem.startswith("config.toml:2:8: ")


def test_loader_refuses_a_value_where_a_section_belongs(path: Path) -> None:
    assert problems(path, "api = 3\n") == ["config.toml:1: api: expected a section [api], got 3"]


def test_loader_keeps_types_strict_when_they_come_from_the_file(path: Path) -> None:
    found = problems(path, '[market]\nprice_in = "5"\nprice_out = 1.5\nprice_fixed = true\nprice_max = -1\n')
    assert [problem.split(":")[1] for problem in found] == ["2", "3", "4", "5"]


def test_loader_splits_lists_when_they_come_from_the_environment(path: Path) -> None:
    environ = {
        "SOUK_P2P_BOOTSTRAP": "/ip4/10.0.0.1/tcp/1/p2p/A, /ip4/10.0.0.2/tcp/1/p2p/B",
        "SOUK_MODELS_SERVE": "",
    }
    config = load_config(path, environ=environ, settings=["worker.devices=cuda:0,cuda:1"]).config
    assert config.p2p.bootstrap == ("/ip4/10.0.0.1/tcp/1/p2p/A", "/ip4/10.0.0.2/tcp/1/p2p/B")
    assert config.models.serve == ()
    assert config.worker.devices == ("cuda:0", "cuda:1")
    assert load_config(path, environ={"SOUK_WORKER_DEVICES": "cpu"}).config.worker.devices == "cpu"


def test_loader_names_the_item_when_one_of_a_list_is_wrong(path: Path) -> None:
    assert problems(path, '[models]\nserve = ["a", 2]\n') == [
        "config.toml:2: models.serve: expected str, got int in item 2 (got ['a', 2])"
    ]


def test_loader_refuses_what_cannot_work_though_its_type_is_right(path: Path) -> None:
    found = problems(
        path,
        '[api]\nbind = "127.0.0.1:70000"\n[p2p]\nlisten = ["tcp"]\n',
        settings=["p2p.bootstrap=/ip4/1.2.3.4/tcp/1"],
    )
    assert found == [
        "config.toml:2: api.bind: expected a port up to 65535, got 70000",
        "config.toml:4: p2p.listen: expected a multiaddr such as /ip4/0.0.0.0/tcp/11501, got 'tcp'",
        "--set p2p.bootstrap: expected /ip4/…/tcp/…/p2p/PEER, got '/ip4/1.2.3.4/tcp/1'",
    ]


def test_loader_refuses_an_api_beyond_loopback(path: Path) -> None:
    (problem,) = problems(path, '[api]\nbind = "0.0.0.0:11500"\n')
    assert problem.startswith("config.toml:2: api.bind: ")


def test_loader_lets_the_variables_of_commands_and_scripts_pass(path: Path) -> None:
    environ = {"SOUK_HOME": "x", "SOUK_API": "x", "SOUK_VENV": "x", "SOUK_EXTRAS": "x", "PATH": "x"}
    assert load_config(path, environ=environ).config == Config()


def test_locator_falls_back_to_the_section_when_the_key_is_inside_a_table() -> None:
    text = '[node]\nname = "a"\n[api]\nlimits = { a = 1 }\n'
    assert locate(text, "api.limits.a") == 4
    assert locate(text, "api.bind") == 3
    assert locate(text, "worker.slots") is None


BAD = sorted((Path(__file__).parent / "configs_bad").glob("*.toml"))


def test_corpus_of_bad_files_is_large_enough_and_whole() -> None:
    assert len(BAD) >= 25
    assert {path.stem for path in BAD} == {path.stem for path in BAD[0].parent.glob("*.txt")}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_loader_says_exactly_what_is_wrong_with_a_bad_file(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    said = "".join(f"{problem}\n" for problem in caught.value.problems).replace(str(path), path.name)
    assert said == path.with_suffix(".txt").read_text("utf-8")
