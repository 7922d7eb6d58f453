import json
import os
from pathlib import Path

import pytest

from node.home import Home
from node.models.holding import Holds
from protocol.units import ModelId
from tests.cli.fakes import FakeDaemon, souk
from tests.execution.tiny_model import write_tiny_model

MODEL = {
    "name": "smol", "model_id": "ab" * 32, "local": False, "peers": 2, "context_tokens": 2048, "price_in": 200_000,
    "price_out": 800_000, "tokens_per_s": 41.5, "tasks": ["embed"],
}  # fmt: skip


def test_models_of_the_network_are_listed_by_the_daemon(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/models", {"schema": 1, "models": [MODEL]})
    out = souk("models").out
    for part in ("smol", "embed", "abababababab", "no", "2,048", "800,000", "41.5"):
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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


def add_two(source: Path, home: Home, *, quota: bool = False) -> None:
    """Import two models, the first of which was used long ago; then bound the store to nothing."""
    first = souk("models", "add", str(source), "-o", "json").json()
    souk("models", "add", str(write_tiny_model(source.parent / "other", seed=2)))
    os.utime(Path(first["folder"]) / "manifest.msgpack", (1, 1))
    if quota:
        # A quota is in gigabytes, these models in kilobytes.
        home.create()
        home.config_path.write_text("[models]\nquota_gb = 1\n")


def test_added_model_is_listed_shown_and_verified_without_a_daemon(source: Path) -> None:
    added = souk("models", "add", str(source), "-o", "json")
    model = added.json()
    assert (model["name"], model["pinned"], model["served"], model["room"]) == ("tiny", False, False, [])
    shown = souk("models", "show", "tiny", "--json").json()
    assert shown["model_id"] == model["model_id"]
    assert {file["name"]: file["chunks"] for file in shown["files"]}["model.safetensors"] == 1
    assert [found["name"] for found in souk("models", "ls", "--store", "--json").json()["models"]] == ["tiny"]
    for line in (["show", "tiny"], ["ls", "--store"], ["verify"]):
        assert "tiny" in souk("models", *line).out
    again = souk("models", "add", str(source), "--name", "other")
    assert again.code == 0 and "here already, as tiny" in again.err


def test_rm_ends_with_9_when_a_model_is_pinned_or_served(source: Path, home: Home) -> None:
    model = souk("models", "add", str(source), "--json").json()
    assert "whatever room" in souk("models", "pin", "tiny").out
    ran = souk("models", "rm", "tiny", "--yes")
    assert ran.code == 9 and "souk models unpin tiny" in ran.err
    assert souk("models", "unpin", "tiny").code == 0
    holds = Holds(home.models_path)
    holds.take([ModelId(bytes.fromhex(model["model_id"]))])
    ran = souk("models", "rm", "tiny", "--dry-run")
    assert ran.code == 9 and "serves it" in ran.err
    assert souk("models", "show", "tiny", "--json").json()["served"] is True
    holds.release_all()
    assert souk("models", "rm", "tiny", "--yes").code == 0
    assert souk("models", "ls", "--store", "--json").json()["models"] == []


def test_evict_explains_every_model_and_needs_a_quota(
    source: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_two(source, home)
    assert souk("models", "evict").code == 2
    add_two(source, home, quota=True)
    monkeypatch.setattr("node.cli.models.GB", 150_000)  # one of the two fits
    ran = souk("models", "evict", "--dry-run")
    assert ran.code == 0 and "removed tiny" in ran.out and "kept other" in ran.out and "there is room" in ran.out
    rows = [json.loads(line) for line in souk("models", "evict", "-o", "jsonl").out.splitlines()]
    assert [(row["name"], row["removed"]) for row in rows] == [("tiny", True), ("other", False)]


@pytest.mark.parametrize(("verb", "said"), [("load", "answers on cpu"), ("unload", "not served any more")])
def test_daemon_is_told_to_load_and_unload(daemon: FakeDaemon, verb: str, said: str) -> None:
    loaded = {
        "schema": 1, "name": "smol", "model_id": "ab" * 32, "device": "cpu", "dtype": "bf16", "context_tokens": 64,
        "slots": 2, "memory_bytes": 1024, "tokens_per_s": 3.5,
    }  # fmt: skip
    daemon.answer(f"POST /api/v1/models/smol/{verb}", loaded)
    assert said in souk("models", verb, "smol").out
    error = {"error": {"message": "the store has tiny", "code": "model_not_found"}}
    daemon.answer(f"POST /api/v1/models/a%2F..%2Fb/{verb}", error, 404)
    ran = souk("models", verb, "a/../b")
    assert ran.code == 5 and "the store has tiny" in ran.err


def test_rm_leaves_a_store_of_others_alone_unless_told_so(home: Home, source: Path, tmp_path: Path) -> None:
    home.create()
    home.config_path.write_text(f'[models]\ndir = "{tmp_path / "shared"}"\n')
    souk("models", "add", str(source))
    ran = souk("models", "rm", "tiny")
    assert ran.code == 2 and "--yes" in ran.err
    assert souk("models", "rm", "tiny", "--yes").code == 0
    assert souk("models", "rm", "tiny", "--yes").code == 5
