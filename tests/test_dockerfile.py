"""Reads the Dockerfile as docker would, as far as can be told without one: it is not built here."""

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from node.cli.app import souk as app
from node.config import ApiSection, P2pSection

ROOT = Path(__file__).parent.parent
KNOWN = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    name: str
    text: str
    line: int

    @property
    def words(self) -> list[str]:
        return [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def flags(self) -> dict[str, str]:
        pairs = (word[2:].partition("=") for word in shlex.split(self.text) if word.startswith("--"))
        return {name: value for name, _, value in pairs}


def parse(text: str) -> Iterator[Instruction]:
    """Yield the instructions; lines that end in a backslash go on, comments between them are skipped."""
    gathered, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun if gathered else number
        gathered += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        name, _, rest = gathered.strip().partition(" ")
        yield Instruction(name=name, text=rest.strip(), line=begun)
        gathered = ""
    assert not gathered, f"line {begun} goes on for ever"


INSTRUCTIONS = list(parse((ROOT / "Dockerfile").read_text("utf-8")))


def all_of(name: str) -> list[Instruction]:
    return [it for it in INSTRUCTIONS if it.name == name]


def final_stage() -> list[Instruction]:
    start = max(i for i, it in enumerate(INSTRUCTIONS) if it.name == "FROM")
    return INSTRUCTIONS[start:]


def is_sent(path: Path) -> bool:
    """Return whether ``.dockerignore`` lets a path at the root into the build; its last line that fits counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(path.name, pattern.lstrip("!")):
            sent = pattern.startswith("!")
    return sent


def test_parser_joins_lines_and_skips_comments() -> None:
    text = '# one\nRUN a \\\n  # two\n  && b\n\nCMD ["c"]\n'
    assert [(it.name, it.words, it.line) for it in parse(text)] == [
        ("RUN", ["a", "&&", "b"], 2),
        ("CMD", ["[c]"], 6),
    ]


@pytest.mark.parametrize("it", INSTRUCTIONS, ids=lambda it: f"{it.line}-{it.name}")
def test_instruction_is_one_that_docker_knows(it: Instruction) -> None:
    assert it.name in KNOWN and it.text


def test_base_is_an_argument_of_every_stage() -> None:
    assert (INSTRUCTIONS[0].name, INSTRUCTIONS[0].text) == ("ARG", "BASE=python:3.11-slim")
    assert {it.words[0] for it in all_of("FROM")} == {"${BASE}"}


def test_nothing_is_fetched_or_unpacked_by_add() -> None:
    assert not all_of("ADD")
    assert not re.search(r"https?://", " ".join(it.text for it in INSTRUCTIONS))


def test_sources_that_are_copied_exist_and_are_sent() -> None:
    stages = {it.words[2] for it in all_of("FROM") if len(it.words) == 3}
    sources = []
    for it in all_of("COPY"):
        if "from" in it.flags:
            assert it.flags["from"] in stages
        else:
            sources += it.words[:-1]
    assert {"node", "protocol", "configs", "pyproject.toml", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and is_sent(ROOT / source), source


@pytest.mark.parametrize("name", [".git", ".venv", "tests", "models", "key", "ledger.db", "token"])
def test_nothing_private_is_sent_to_the_builder(name: str) -> None:
    assert not is_sent(ROOT / name)


def test_daemon_does_not_run_as_root() -> None:
    (user,) = [it for it in final_stage() if it.name == "USER"]
    assert user.words[0] not in ("root", "0") and not user.text.startswith("0:")
    # The account is made in the same stage, before it is taken.
    assert any(it.name == "RUN" and "useradd --system --uid 10001" in it.text for it in final_stage())
    assert [it.name for it in final_stage()].index("USER") < [it.name for it in final_stage()].index("CMD")


@pytest.mark.parametrize("name", ["CMD", "HEALTHCHECK"])
def test_container_runs_a_verb_that_exists(name: str) -> None:
    (it,) = [it for it in final_stage() if it.name == name]
    line = json.loads(it.text[it.text.index("[") :])
    assert line[0] == "souk"
    context = click.Context(app)
    (verb,) = [word for word in line[1:] if not word.startswith("-")]
    assert app.get_command(context, verb) is not None
    app.parse_args(context, [word for word in line[1:] if word.startswith("-")] + [verb])


def test_only_the_port_for_peers_is_exposed() -> None:
    (exposed,) = all_of("EXPOSE")
    (listen,) = P2pSection().listen
    assert exposed.words == [f"{listen.rpartition('/')[2]}/tcp"]
    assert ApiSection().bind.startswith("127.0.0.1:")


def test_home_is_the_volume() -> None:
    (variables,) = [it for it in final_stage() if it.name == "ENV" and "SOUK_HOME" in it.text]
    (volume,) = all_of("VOLUME")
    assert f"SOUK_HOME={volume.text}" in variables.words
