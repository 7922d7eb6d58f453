"""Reads README and docs/: every command, setting, metric, code and link in them is one that exists."""

import ast
import contextlib
import json
import os
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import pytest

from node.api.bodies import read_chat, read_text
from node.cli.app import souk as app
from node.cli.exits import Exit
from node.cli.init import PROFILES
from node.config import Config
from node.config_file import PREFIX, load_config, setting_types
from node.market.order import UnfitInputError
from protocol.errors import DeclineCode
from tests.test_configs import known_metrics

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# Everything that stands at the beginning of a line of shell in our pages. What is not here is a misprint.
PROGRAMS = {
    "cat", "cp", "curl", "docker", "echo", "eval", "git", "install", "journalctl", "loginctl", "mkdir",
    "prometheus", "python", "scripts/demo", "scripts/setup", "scripts/test", "souk", "sqlite3", "sudo",
    "systemctl", "tee", "timedatectl", "/opt/souk/bin/souk",
}  # fmt: skip
UNLISTED_API_CODES = {"http_error"}  # Starlette's own errors that have no form of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for page, text in PAGES.items():
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page=page, line=line, language=match[2], text=textwrap.dedent(match[3]))
        if page == "README.md":
            yield Block(
                page=page, line=1, language="", text="\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE))
            )


BLOCKS = list(blocks())


def shell_lines() -> list[str]:
    """Return the lines of shell, continued ones joined; of a block without a language only ours."""
    found = []
    for block in BLOCKS:
        lines = block.text.replace("\\\n", " ").splitlines()
        if block.language == "sh":
            found += [line for line in lines if line.strip() and not line.startswith("#")]
        elif block.language == "":
            found += [line for line in lines if line.startswith(("souk ", "eval ", "scripts/"))]
    return found


def parts(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of one line of shell, without comments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if word and set(word) <= set("();<>|&"):
            skip = set(word) <= set("<>")
            if not skip:
                yield words
                words = []
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


def commands(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``souk`` in one line of shell, also behind sudo and docker."""
    for inner in re.findall(r"\$\(souk ([^)]*)\)", line):
        yield shlex.split(inner)
    for words in parts(line):
        if not words:
            continue
        assert words[0] in PROGRAMS, line
        if Path(words[0]).name == "souk":
            yield words[1:]
        elif words[:2] == ["sudo", "-u"] or words[:2] in (["docker", "run"], ["docker", "exec"]):
            last = len(words) - 1 - words[::-1].index("souk")
            if words[last + 1 :]:  # else it names the image, which knows its command
                yield words[last + 1 :]


def check_command(arguments: list[str]) -> None:
    """Raise click's own error where ``souk`` would not take these arguments. Nothing is run.

    A file that is not there is the reader's own, and no fault.
    """
    command: click.Command = app
    parent: click.Context | None = None
    rest = arguments
    while True:
        try:
            context = command.make_context(command.name or "souk", list(rest), parent=parent)
        except click.BadParameter as exc:
            if "does not exist" in exc.format_message():
                return
            raise
        left = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not left:
            return
        _name, found, rest = command.resolve_command(context, left)
        assert found is not None
        command, parent = found, context


@pytest.mark.parametrize("line", shell_lines())
def test_command_in_the_pages_is_one_that_souk_takes(line: str) -> None:
    for arguments in commands(line):
        check_command(arguments)


def test_check_of_commands_sees_what_souk_would_not_take() -> None:
    assert list(commands("sudo -u souk souk --home /var/lib/souk status | cat > out")) == [
        ["--home", "/var/lib/souk", "status"]
    ]
    assert list(commands("docker run -d --name souk -v souk:/x souk souk models ls # list")) == [["models", "ls"]]
    assert list(commands('eval "$(souk env)"')) == [["env"]]
    for wrong in ("souk rnu", "souk run", "souk run m p --nosuch", "souk peers lss", "souk init --profile nosuch"):
        (arguments,) = commands(wrong)
        with pytest.raises(click.UsageError):
            check_command(arguments)


@pytest.mark.parametrize("page", PAGES)
def test_command_in_the_text_of_a_page_is_one_that_souk_takes(page: str) -> None:
    prose = re.sub(r"^( *)```.*?^\1```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(souk [^`…]+)`", prose):
        for arguments in commands(span):
            with contextlib.suppress(click.MissingParameter):  # a verb is named, not called
                check_command(arguments)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: f"{b.page}-{b.line}"
)
def test_python_in_the_pages_compiles(block: Block) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec")


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("curl")])
def test_request_in_the_pages_is_one_that_the_api_takes(line: str) -> None:
    words = shlex.split(line)
    (url,) = [word for word in words if word.startswith(("$OPENAI_BASE_URL", "http"))]
    path = url.replace("$OPENAI_BASE_URL", "/v1").removeprefix("http://127.0.0.1:11500")
    assert f'"{path}"' in "".join(
        (ROOT / "node" / "api" / name).read_text() for name in ("openai.py", "control.py")
    )
    if "-d" in words:
        read = {"/v1/chat/completions": read_chat, "/v1/completions": read_text}[path]
        request, ignored = read(words[words.index("-d") + 1].encode())
        assert request.model and not ignored


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        found = (ROOT / page).parent / name if name else ROOT / page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


# Names.


def table(page: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with ``first``."""
    lines = PAGES[page].splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_operate_lists_every_setting_with_its_default() -> None:
    expected = [
        (f"{section.name}.{item.name}", msgspec.to_builtins(item.default))
        for section in msgspec.structs.fields(Config)
        if section.name != "version"
        for item in msgspec.structs.fields(section.type)
    ]
    shown = [(code(row[0])[0], json.loads(code(row[1])[0])) for row in table("docs/operate.md", "key")]
    assert shown == [(name, list(value) if isinstance(value, tuple) else value) for name, value in expected]


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_a_page_names_exist(page: str) -> None:
    sections = "|".join({name.partition(".")[0] for name in setting_types()} - {"node", "log"})
    named = set(re.findall(rf"\b((?:{sections})\.[a-z0-9_]+)\b", PAGES[page]))
    # Names of files, not settings.
    assert {name for name in named if not name.endswith((".md", ".txt", ".json"))} <= set(setting_types())
    variables = set(re.findall(rf"\b{PREFIX}[A-Z0-9_]+\b", PAGES[page])) - {
        "SOUK_HOME",
        "SOUK_API",
        "SOUK_SECTION_KEY",
    }
    assert variables <= {PREFIX + name.replace(".", "_").upper() for name in setting_types()}


@pytest.mark.parametrize("page", PAGES)
def test_metrics_that_a_page_names_exist(page: str) -> None:
    known = {re.sub("_(bucket|sum|count)$", "", name) for name in known_metrics()}
    assert set(re.findall(r"\bsouk_[a-z_]+\b", PAGES[page])) <= known


def test_operate_lists_every_metric_with_its_labels() -> None:
    added = {"instance", "job", "le"}
    known = {
        name.removesuffix("_bucket"): labels - added
        for name, labels in known_metrics().items()
        if name.startswith("souk_") and not name.endswith(("_sum", "_count"))
    }
    shown = {code(row[0])[0]: set(code(row[2])) for row in table("docs/operate.md", "metric")}
    assert shown == known


def test_settings_given_on_a_command_line_are_good(tmp_path: Path) -> None:
    given = [
        word
        for line in shell_lines()
        for words in commands(line)
        for word in words
        if re.match(r"\w+\.\w+=", word)
    ]
    assert given
    load_config(tmp_path / "none", environ={}, settings=given)


def test_use_lists_every_exit_code() -> None:
    assert [int(row[0]) for row in table("docs/use.md", "code")] == [int(exit_code) for exit_code in Exit]


def test_use_lists_every_error_of_the_api() -> None:
    expected = {"invalid_value"}  # the default of bad_request
    for path in (ROOT / "node" / "api").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("ApiError", "bad_request"):
                named = (it.value for it in call.keywords if it.arg == "code")
                expected |= {str(value.value) for value in named if isinstance(value, ast.Constant)}
    expected |= {error.code for error in UnfitInputError.__subclasses__()}
    listed = {name for row in table("docs/use.md", "status") for name in code(row[1])}
    assert listed == expected - UNLISTED_API_CODES


def test_troubleshooting_explains_every_refusal() -> None:
    rows = [code(row[0])[0] for row in table("docs/troubleshooting.md", "code")]
    declines = [decline.value for decline in DeclineCode]
    assert rows[: len(declines)] == declines
    own = set()
    for path in (ROOT / "node" / "market").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "AttemptFailedError":
                own |= {str(arg.value) for arg in call.args[:1] if isinstance(arg, ast.Constant)}
    assert set(rows[len(declines) :]) == own - set(declines)


def test_operate_lists_every_profile() -> None:
    assert {code(row[0])[0] for row in table("docs/operate.md", "profile")} == set(PROFILES)


@pytest.mark.parametrize("quoted", [
    "cannot be used as a ledger: damaged", "does not continue the chain before it", "written by a newer souk",
    "no model answers: the worker is being restarted", "bootstrap peer not reached", "ledger can be written again",
    "model left out", "no daemon answers at", "the port is in use", "nobody is left to go on", "nothing yet",
    "already runs here", "is open to others",
])  # fmt: skip
def test_text_that_troubleshooting_quotes_is_what_the_node_says(quoted: str) -> None:
    flat = " ".join(PAGES["docs/troubleshooting.md"].split())
    assert quoted in flat
    assert any(quoted in path.read_text("utf-8") for path in (ROOT / "node").rglob("*.py"))


def test_scripts_that_the_pages_name_can_be_run() -> None:
    for name in {name for text in PAGES.values() for name in re.findall(r"\bscripts/(?:setup|demo|test)\b", text)}:
        assert os.access(ROOT / name, os.X_OK)
