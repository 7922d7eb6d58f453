import tomllib

import pytest

from node.cli.config_edit import is_set, with_setting, without_setting
from node.errors import ConfigError

TEXT = """\
# mine
[market]          # µc
price_in = 100    # per million

[log]
level = "info"
"""


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("market.price_in", 250, "price_in = 250    # per million"),
        ("market.price_out", 7, "price_out = 7"),
        ("log.level", "debug", 'level = "debug"'),
        ("owner.hours", ("22:00-07:00",), 'hours = ["22:00-07:00"]'),
        ("owner.on_battery", False, "on_battery = false"),
    ],
)
def test_editor_changes_one_setting_and_leaves_the_rest(name: str, value: object, line: str) -> None:
    changed = with_setting(TEXT, name, value)
    assert line in changed.splitlines()
    section, _, key = name.partition(".")
    expected = tomllib.loads(TEXT)
    expected.setdefault(section, {})[key] = list(value) if isinstance(value, tuple) else value
    assert tomllib.loads(changed) == expected
    assert "# mine" in changed and "# µc" in changed


def test_editor_writes_a_section_when_there_is_no_file_yet() -> None:
    assert with_setting("", "api.max_queue", 3) == "[api]\nmax_queue = 3\n"


@pytest.mark.parametrize(
    "text", ["[market]\nprice_in = [\n 1 ]\n", "market = { price_in = 1 }\n", "[market]\nprice_in = \n"]
)
def test_editor_refuses_what_it_cannot_change_by_line(text: str) -> None:
    with pytest.raises(ConfigError):
        with_setting(text, "market.price_in", 2)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (TEXT, "market.price_in", TEXT.replace("price_in = 100    # per million\n", "")),
        ("[a]\nb = 1\n", "a.b", "[a]\n"),
        ("[a]\nb = 1", "a.b", "[a]\n"),
        ("a.b = 1\n[c]\n", "a.b", "[c]\n"),
        ('[a]\nb = [\n  "]",\n]\n# c\n', "a.b", "[a]\n# c\n"),
        ('[a]\nb = """\nx = 1\n"""\nc = 2\n', "a.b", "[a]\nc = 2\n"),
    ],
)
def test_editor_takes_one_setting_out_and_leaves_the_rest(text: str, name: str, expected: str) -> None:
    assert is_set(text, name)
    assert without_setting(text, name) == expected
    assert not is_set(expected, name)


def test_editor_refuses_to_take_out_what_shares_its_line() -> None:
    with pytest.raises(ConfigError, match="cannot be taken out by line"):
        without_setting("a = {b = 1, c = 2}\n", "a.b")
