from pathlib import Path

import pytest

from node.home import Home
from tests.cli.fakes import souk

FILE = """\
# mine
[market]
price_in = 5  # low
price_out = 7

[p2p]
listen = [
  "/ip4/0.0.0.0/tcp/1",  # here
]
bootstrap = []
"""


@pytest.fixture(autouse=True)
def file(home: Home) -> Path:
    home.create()
    home.config_path.write_text(FILE)
    return home.config_path


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a script that stands for an editor; the test writes what it does with "$1"."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"sh '{tmp_path}/an editor'")
    return tmp_path / "an editor"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("market.price_in", "price_in = 5  # low\n"),
        ("p2p.listen", 'listen = [\n  "/ip4/0.0.0.0/tcp/1",  # here\n]\n'),
        ("p2p.bootstrap", "bootstrap = []\n"),
    ],
)
def test_unset_takes_one_setting_out_and_leaves_the_rest(file: Path, name: str, line: str) -> None:
    assert souk("config", "unset", name, "-o", "json").json()["changed"] is True
    assert file.read_text() == FILE.replace(line, "")
    again = souk("config", "unset", name)
    assert again.code == 0 and "is not set" in again.err


def test_unset_takes_out_a_setting_that_does_not_exist(file: Path) -> None:
    file.write_text("[market]\nprice_ni = 5\nprice_in = 6\n")
    assert souk("config", "unset", "market.price_ni").code == 0
    assert file.read_text() == "[market]\nprice_in = 6\n"


def test_unset_ends_with_3_and_a_hint_when_no_setting_is_called_so(file: Path) -> None:
    ran = souk("config", "unset", "market.price_ni")
    assert ran.code == 3 and "did you mean market.price_in?" in ran.err and file.read_text() == FILE


def test_unset_refuses_what_cannot_be_changed_by_line(file: Path) -> None:
    file.write_text("market = {price_in = 5, price_out = 6}\n")
    ran = souk("config", "unset", "market.price_in")
    assert ran.code == 3 and "edit the file" in ran.err and "price_in = 5" in file.read_text()


def test_edit_puts_the_text_into_place_when_it_is_good(file: Path, editor: Path) -> None:
    editor.write_text('sed -i "s/price_in = 5/price_in = 6/" "$1"\n')
    assert souk("config", "edit", "-o", "json").json() == {"schema": 1, "path": str(file), "changed": True}
    assert file.read_text() == FILE.replace("price_in = 5", "price_in = 6")
    assert [it.name for it in file.parent.iterdir()] == ["config.toml"]


def test_edit_keeps_the_file_and_the_draft_when_there_is_a_fault(file: Path, editor: Path) -> None:
    editor.write_text('sed -i "s/price_in = 5/price_ni = 6/" "$1"\n')
    ran = souk("config", "edit")
    draft = file.with_name("config.draft.toml")
    assert ran.code == 3 and file.read_text() == FILE
    assert ran.err.splitlines()[0] == f"{draft}:3: market.price_ni: unknown key (did you mean price_in?)"
    assert "goes on with the draft" in ran.err
    editor.write_text('sed -i "s/price_ni/price_in/" "$1"\n')
    ran = souk("config", "edit")
    assert ran.code == 0 and f"going on with {draft}" in ran.err and "price_in = 6" in file.read_text()
    assert not draft.exists()


def test_edit_changes_nothing_when_the_editor_changed_nothing_failed_or_is_none(
    file: Path, editor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor.write_text("true\n")
    assert "nothing was changed" in souk("config", "edit").err
    editor.write_text("exit 3\n")
    ran = souk("config", "edit")
    assert ran.code == 1 and "ended with 3" in ran.err
    monkeypatch.setenv("VISUAL", "/nonexistent/editor")
    ran = souk("config", "edit")
    assert ran.code == 2 and "cannot be started" in ran.err
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("VISUAL")
    monkeypatch.delenv("EDITOR")
    ran = souk("config", "edit")
    assert ran.code == 2 and "set EDITOR" in ran.err
    assert [it.name for it in file.parent.iterdir()] == ["config.toml"] and file.read_text() == FILE
