"""Specs of jobs as files: TOML or JSON into a table, ``--set`` on top, and every fault with its line.

What a spec may say is ``node/api/job_specs.py``'s.
"""

import json
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.cli.exits import CliError, Exit

SPEC_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One problem of a spec, and where it stands."""

    where: str
    """``job.toml:7``, ``job.toml`` where no line can be told, or ``--set``."""
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.message}" if self.field else f"{self.where}: {self.message}"


@dataclass(slots=True, kw_only=True)
class SpecFile:
    """A spec as it was read; ``table`` is what the daemon is sent."""

    name: str
    text: str
    table: dict[str, Any]  # decoded TOML or JSON, judged by ``faults``
    is_json: bool
    overridden: set[str] = field(default_factory=set)

    def override(self, settings: Sequence[str]) -> None:
        """Put ``key=value`` texts on top: the value in TOML's form, or a text as it stands. Raises: CliError."""
        for setting in settings:
            name, equals, text = setting.partition("=")
            *parents, last = parts = name.strip().split(".")
            if not equals or not all(parts):
                raise CliError(f"--set {setting}: expected KEY=VALUE, such as max_tokens=64", Exit.USAGE)
            table = self.table
            for parent in parents:
                inner = table.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise CliError(f"--set {name}: {parent} holds a value, not a table", Exit.USAGE)
                table = inner
            table[last] = _value(text.strip())
            self.overridden.add(".".join(parts))

    def faults(self) -> list[Fault]:
        """Return everything that is wrong with it."""
        from node.api.job_specs import find_problems

        return [
            Fault(where=self._where(it.field), field=it.field, message=it.message)
            for it in find_problems(self.table)
        ]

    def check(self) -> None:
        """Raises: CliError: something is wrong with it; all is told at once."""
        if faults := self.faults():
            raise CliError("nothing was ordered:\n  " + "\n  ".join(map(str, faults)), Exit.USAGE)

    def _where(self, name: str) -> str:
        if name in self.overridden:
            return "--set"
        line = _json_line(self.text, name) if self.is_json else _toml_line(self.text, name)
        return self.name if line is None else f"{self.name}:{line}"


def read_spec_file(source: str) -> SpecFile:
    """Return what a file, or standard input for ``-``, says in TOML or JSON. Raises: CliError."""
    name = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read(SPEC_BYTES_MAX + 1) if source == "-" else _read(Path(source))
        text = data.decode()
    except OSError as exc:
        raise CliError(f"{name} cannot be read: {exc.strerror}", Exit.USAGE) from exc
    except UnicodeDecodeError as exc:
        raise CliError(f"{name}: expected UTF-8 text: {exc}", Exit.USAGE) from exc
    if len(data) > SPEC_BYTES_MAX:
        raise CliError(f"{name}: expected at most {SPEC_BYTES_MAX} bytes", Exit.USAGE)
    # No TOML begins with a brace.
    is_json = text.lstrip()[:1] == "{"
    try:
        table = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        form = "JSON" if is_json else "TOML"
        raise CliError(f"{name}: this is no {form}: {exc}", Exit.USAGE) from exc
    return SpecFile(name=name, text=text, table=table, is_json=is_json)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SPEC_BYTES_MAX + 1)


def _value(text: str) -> Any:  # a value of TOML
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml_line(text: str, name: str) -> int | None:
    from node.config_file import locate

    if item := re.match(r"(\w+)\[(\d+)\]", name):
        headers = [
            number
            for number, line in enumerate(text.splitlines(), 1)
            if re.match(rf"\s*\[\[\s*{item[1]}\s*\]\]", line)
        ]
        if int(item[2]) < len(headers):
            return headers[int(item[2])]
    return locate(text, name.partition("[")[0])


def _json_line(text: str, name: str) -> int | None:
    """Return the line of a key: the first one that is called so, which is where a person looks first."""
    key = name.partition("[")[0].rpartition(".")[2]
    found = re.search(rf'"{re.escape(key)}"\s*:', text) if key else None
    return None if found is None else text.count("\n", 0, found.start()) + 1
