from pathlib import Path
from types import SimpleNamespace

import pytest

from node.home import Home
from node.models.store import ModelStore
from tests.cli.fakes import FakeDaemon, souk

MODEL = {
    "name": "smol", "model_id": "ab" * 32, "local": False, "peers": 2, "context_tokens": 2048, "price_in": 200_000,
    "price_out": 800_000, "tokens_per_s": 41.5,
}  # fmt: skip


def test_models_of_the_network_are_listed_by_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/models", {"schema": 1, "models": [MODEL]})
    out = souk("models").out
    for part in ("smol", "abababababab", "no", "2,048", "800,000", "41.5"):
        assert part in out


def test_models_of_the_store_are_listed_without_a_daemon() -> None:
    assert souk("models", "ls", "--store").out == "The store is empty: souk models add PATH.\n"
    assert souk("models", "ls", "--store", "-o", "json").json() == {"schema": 1, "models": []}


@pytest.mark.parametrize("verb", ["verify", "rm"])
def test_model_that_is_not_in_the_store_ends_with_5(verb: str) -> None:
    ran = souk("models", verb, "smol")
    assert ran.code == 5 and "smol" in ran.err


def test_add_says_what_it_misses_when_a_folder_is_no_model(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    ran = souk("models", "add", str(folder))
    assert ran.code == 1 and "config.json" in ran.err and not ran.out


def test_store_is_where_the_configuration_says(home: Home, tmp_path: Path) -> None:
    home.create()
    (tmp_path / "elsewhere" / "00").mkdir(parents=True)
    home.config_path.write_text(f'[models]\ndir = "{tmp_path / "elsewhere"}"\n')
    ran = souk("models", "add", str(tmp_path), "--name", "NOT A NAME")
    assert ran.code == 1
    assert souk("models", "ls", "--store").code == 0
    assert not home.models_path.exists()


def test_store_verbs_end_with_3_when_the_configuration_is_broken(home: Home) -> None:
    home.create()
    home.config_path.write_text("[models]\ndirr = 1\n")
    assert souk("models", "ls", "--store").code == 3


def test_rm_leaves_a_store_of_others_alone_unless_told_so(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[object] = []
    monkeypatch.setattr(ModelStore, "find", lambda _store, name: SimpleNamespace(name=name, folder="shared"))
    monkeypatch.setattr(ModelStore, "remove", lambda _store, model: removed.append(model))
    assert souk("models", "rm", "smol").code == 0 and removed
    removed.clear()
    home.create()
    home.config_path.write_text(f'[models]\ndir = "{tmp_path / "shared"}"\n')
    ran = souk("models", "rm", "smol")
    assert ran.code == 2 and "--yes" in ran.err and not removed
    assert souk("models", "rm", "smol", "--yes").code == 0 and removed
