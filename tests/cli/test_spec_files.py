from pathlib import Path
from typing import Any

import pytest

from node.cli.exits import CliError
from node.cli.spec_files import read_spec_file

GOOD = 'task = "generate"\nmodel = "smol"\nprompt = "Once"\n'
BAD = """\
task = "generate"
modle = "smol"
max_tokens = "many"

[[messages]]
role = "user"
content = "Hi."
[[messages]]
role = "robot"
content = "Beep."

[souk]
max_prise = 5
"""


def written(folder: Path, text: str) -> str:
    path = folder / "job.spec"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("text", [GOOD, '{"task": "generate", "model": "smol", "prompt": "Once"}'])
def test_spec_is_read_as_toml_or_json_whatever_its_name(tmp_path: Path, text: str) -> None:
    read = read_spec_file(written(tmp_path, text))
    assert read.table == {"task": "generate", "model": "smol", "prompt": "Once"} and read.faults() == []
    read.check()


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    name = written(tmp_path, BAD)
    read = read_spec_file(name)
    read.override(["seed=x"])
    with pytest.raises(CliError) as refused:
        read.check()
    assert str(refused.value).splitlines() == [
        "nothing was ordered:",
        f"  {name}:2: modle: unknown key (did you mean model?)",
        f"  {name}: model: is missing",
        f"  {name}:13: souk.max_prise: unknown key (did you mean max_price?)",
        f"  {name}:8: messages[1].role: expected one of system, developer, user, assistant (got 'robot')",
        f"  {name}:3: max_tokens: expected int, got str (got 'many')",
        "  --set: seed: expected int | null, got str (got 'x')",
    ]


def test_fault_of_a_json_spec_is_told_with_the_line_of_its_key(tmp_path: Path) -> None:
    name = written(tmp_path, '{"task": "generate",\n "model": "smol",\n "prompt": "x",\n "top_p": 7}')
    assert [str(it) for it in read_spec_file(name).faults()] == [f"{name}:4: top_p: expected float <= 1.0 (got 7)"]


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("max_tokens=5", ("max_tokens",), 5),
        ("prompt=Once upon a time", ("prompt",), "Once upon a time"),
        ('stop=["a", "b"]', ("stop",), ["a", "b"]),
        ("souk.max_price = 9", ("souk", "max_price"), 9),
        ("prompt=a=b", ("prompt",), "a=b"),
    ],
)
def test_setting_replaces_a_field(tmp_path: Path, setting: str, field: tuple[str, ...], value: object) -> None:
    read = read_spec_file(written(tmp_path, GOOD))
    read.override([setting])
    found: Any = read.table
    for part in field:
        found = found[part]
    assert found == value and read.faults() == []


@pytest.mark.parametrize("setting", ["max_tokens", "=5", "souk..on=any", "model.name=x"])
def test_setting_is_refused_when_it_sets_nothing(tmp_path: Path, setting: str) -> None:
    with pytest.raises(CliError, match="--set"):
        read_spec_file(written(tmp_path, GOOD)).override([setting])


@pytest.mark.parametrize(
    ("text", "told"), [("task = generate\n", "no TOML: Invalid value (at line 1"), ('{"a": 1,}', "no JSON: ")]
)
def test_file_is_refused_when_it_is_neither(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CliError) as refused:
        read_spec_file(written(tmp_path, text))
    assert told in str(refused.value)


def test_file_is_refused_when_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="No such file"):
        read_spec_file(str(tmp_path / "none.toml"))
