"""Where settings come from: a TOML file, strict environment variables, ``--set``; one ``Config`` comes out.

Later sources win: default < file < ``SOUK_SECTION_KEY`` < ``--set section.key=value``. Every fault is reported at
once, with its line. The schema is ``node/config.py``.
"""

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from node.config import Config, Section
from node.errors import ConfigError
from node.hours import parse_hours

PREFIX: Final = "SOUK_"
# Read by the commands and the scripts; no settings of the daemon.
NOT_SETTINGS: Final = frozenset({"SOUK_HOME", "SOUK_API", "SOUK_VENV", "SOUK_EXTRAS"})

# What the rooms follow at once. The rest is given to something that is built once: sockets, workers, timers.
_LIVE_SECTIONS: Final = ("owner", "log")
_FIXED_OF_MARKET: Final = ("market.settlement", "market.settle_every_s", "market.forgive_after_days")
# What a pattern of the schema means, in words: nobody should have to read a regular expression.
_PATTERNS: Final = {
    "node.name": "a name of letters, digits, dots, dashes and underscores",
    "api.bind": "a loopback address such as 127.0.0.1:11500",
}

_HEADER = re.compile(r"^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_NAME = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_KEY = re.compile(rf"^\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration and, for every value that is not a default, where it came from."""

    config: Config
    origins: Mapping[str, str]
    """``section.key`` to ``config.toml:7``, ``env SOUK_API_BIND`` or ``--set``."""

    def origin(self, name: str) -> str:
        return self.origins.get(name, "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSource:
    """Where one daemon's configuration comes from, so that it can be read again."""

    path: Path
    environ: Mapping[str, str]
    settings: tuple[str, ...] = ()
    required: bool = False

    def load(self) -> Loaded:
        """Read the file again. Raises: ConfigError."""
        return load_config(self.path, environ=self.environ, settings=self.settings, required=self.required)


def load_config(
    path: Path, *, environ: Mapping[str, str], settings: Sequence[str] = (), required: bool = False
) -> Loaded:
    """Return the configuration that the sources add up to.

    Args:
        path: the TOML file; that it is missing is a fault only when ``required``.
        environ: the process's environment.
        settings: ``section.key=value`` each, as typed after ``--set``.

    Raises:
        ConfigError: with one line for every fault of every source.
    """
    reading = _Reading(source=str(path), text=read_text(path, required=required))
    reading.read_file()
    reading.read_environment(environ)
    reading.read_settings(settings)
    if not reading.problems:
        config = reading.build()
        reading.check_meaning(config)
        if not reading.problems:
            return Loaded(config=config, origins=dict(reading.origins))
    raise ConfigError(reading.problems)


def setting_types() -> dict[str, Any]:  # the type of a setting is a typing form, which has no type of its own
    """Return every ``section.key`` with its type, in the order of the schema."""
    return {
        f"{section.name}.{item.name}": item.type
        for section in msgspec.structs.fields(Config)
        if _is_section(section.type)
        for item in msgspec.structs.fields(section.type)
    }


def is_live(name: str) -> bool:
    """Return whether a setting can be changed without a restart."""
    section = name.partition(".")[0]
    return section in _LIVE_SECTIONS or (section == "market" and name not in _FIXED_OF_MARKET)


def setting(config: Config, name: str) -> object:
    """Return the value of ``section.key``."""
    section, _, key = name.partition(".")
    value: object = getattr(getattr(config, section), key)
    return value


def read_text(path: Path, *, required: bool = False) -> str:
    """Return the text of a file; of one that is missing, nothing. Raises: ConfigError."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as exc:
        if not required:
            return ""
        raise ConfigError([f"{path}: there is no such file"]) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{path}: cannot be read: {exc}"]) from exc


@dataclass(kw_only=True)
class _Reading:
    """What has been gathered so far; each source adds values, origins and problems."""

    source: str
    text: str
    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    types: dict[str, Any] = field(default_factory=setting_types)  # typing forms, as in setting_types

    def read_file(self) -> None:
        try:
            raw = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as exc:
            at = re.search(r" \(at line (\d+), column (\d+)\)", str(exc))
            where = f"{self.source}:{at[1]}:{at[2]}" if at else self.source
            # Nothing of a broken file can be judged; the other sources still are.
            self.problems.append(f"{where}: {_say_toml(str(exc).split(' (at ')[0])}")
            return
        sections = [name.partition(".")[0] for name in self.types]
        for key, value in raw.items():
            if key == "version":
                self._take(key, value, where=self._where(key), kind=Config.__annotations__["version"])
            elif key not in sections and not isinstance(value, dict | list):
                self.problems.append(f"{self._where(key)}: {key}: stands in no section{self._home_of(key)}")
            elif key not in sections:
                hint = _hint(key, sections)
                self.problems.append(f"{self._where(key)}: [{key}]: unknown section{hint}")
            elif not isinstance(value, dict):
                self.problems.append(f"{self._where(key)}: {key}: expected a section [{key}], got {value!r}")
            else:
                self._read_section(key, value)

    def _home_of(self, key: str) -> str:
        names = [name for name in self.types if name.partition(".")[2] == key]
        return f" (did you mean {names[0]}? it belongs under [{names[0].partition('.')[0]}])" if names else ""

    def _read_section(self, section: str, table: dict[str, object]) -> None:
        known = {name.partition(".")[2] for name in self.types if name.startswith(f"{section}.")}
        for key, value in table.items():
            name = f"{section}.{key}"
            if key in known:
                self._take(name, value, where=self._where(name), kind=self.types[name])
            else:
                self.problems.append(f"{self._where(name)}: {name}: unknown key{_hint(key, known)}")

    def read_environment(self, environ: Mapping[str, str]) -> None:
        variables = {PREFIX + name.replace(".", "_").upper(): name for name in self.types}
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable in NOT_SETTINGS:
                continue
            if variable in variables:
                self._take_text(variables[variable], environ[variable], where=f"env {variable}")
            else:
                hint = _hint(variable, [*variables, *NOT_SETTINGS])
                self.problems.append(f"env {variable}: unknown setting{hint}")

    def read_settings(self, settings: Sequence[str]) -> None:
        for setting in settings:
            name, equals, text = setting.partition("=")
            name = name.strip()
            if not equals:
                self.problems.append(f"--set {setting}: expected section.key=value")
            elif name not in self.types:
                self.problems.append(f"--set {name}: unknown setting{_hint(name, self.types)}")
            else:
                self._take_text(name, text.strip(), where=f"--set {name}")

    def _take(self, name: str, value: object, *, where: str, kind: Any) -> None:  # a typing form
        try:
            self.values[name] = msgspec.convert(value, kind, strict=True)
            self.origins[name] = where
        except msgspec.ValidationError as exc:
            self.problems.append(f"{where}: {name}: {_say(exc, name, kind)} (got {value!r})")

    def _take_text(self, name: str, text: str, *, where: str) -> None:
        kind = self.types[name]
        readings: list[object] = [text]
        if _takes_list(kind):
            readings.append([part.strip() for part in text.split(",") if part.strip()])
        problem = ""
        for value in readings:
            try:
                self.values[name] = msgspec.convert(value, kind, strict=False)
                self.origins[name] = where
                return
            except msgspec.ValidationError as exc:
                problem = _say(exc, name, kind)
        self.problems.append(f"{where}: {problem} (got {text!r})")

    def build(self) -> Config:
        fields: dict[str, Any] = {}  # sections and the version: the keyword arguments of Config
        for section in msgspec.structs.fields(Config):
            if _is_section(section.type):
                prefix = f"{section.name}."
                given = {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}
                fields[section.name] = section.type(**given)
        return Config(**fields)

    def check_meaning(self, config: Config) -> None:
        """Add what a type cannot say."""
        port = int(config.api.bind.rpartition(":")[2])
        if port > 65_535:
            self._object("api.bind", f"expected a port up to 65535, got {port}")
        for address in config.p2p.listen:
            if not address.startswith("/"):
                self._object("p2p.listen", f"expected a multiaddr such as /ip4/0.0.0.0/tcp/11501, got {address!r}")
        for address in config.p2p.bootstrap:
            if not address.startswith("/") or "/p2p/" not in address:
                self._object("p2p.bootstrap", f"expected /ip4/…/tcp/…/p2p/PEER, got {address!r}")
        for device in config.worker.devices if not isinstance(config.worker.devices, str) else ():
            if not _DEVICE.fullmatch(device):
                self._object("worker.devices", f'expected devices such as "cuda:0" or "cpu", got {device!r}')
        for hours in config.owner.hours:
            try:
                parse_hours(hours)
            except ValueError as exc:
                self._object("owner.hours", str(exc))

    def _object(self, name: str, problem: str) -> None:
        where = self.origins.get(name, "default")
        self.problems.append(f"{where}: {problem}" if where.startswith("--") else f"{where}: {name}: {problem}")

    def _where(self, name: str) -> str:
        line = locate(self.text, name)
        return f"{self.source}:{line}" if line else self.source


def locate(text: str, name: str) -> int | None:
    """Return the line of ``section.key`` (or of a section) in a TOML text; None when it cannot be told.

    tomllib keeps no positions. A key of an inline table falls back to the line of the table, which is still where
    a person has to look.
    """
    best: tuple[int, int | None] = (0, None)
    wanted = tuple(name.split("."))
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = found = _parts(header[1])
        elif key := _KEY.match(line):
            found = section + _parts(key[1])
        else:
            continue
        if found == wanted:
            return number
        if found == wanted[: len(found)] and len(found) > best[0]:
            best = (len(found), number)
    return best[1]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, name))


def _say_toml(problem: str) -> str:
    """Say what tomllib means where its own words do not tell what to do."""
    if twice := re.fullmatch(r"Cannot declare \((.*?),?\) twice", problem):
        return f"[{'.'.join(_parts(twice[1]))}] stands here a second time"
    return {
        "Invalid value": "invalid value (text stands in quotes)",
        "Cannot overwrite a value": "this key stands here a second time",
    }.get(problem, problem)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _takes_list(kind: object) -> bool:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return True
    if origin in (typing.Annotated, typing.Union, types.UnionType):
        return any(_takes_list(part) for part in typing.get_args(kind))
    return False


def _say(exc: msgspec.ValidationError, name: str, kind: Any) -> str:  # a typing form
    text, _, at = str(exc).partition(" - at `")
    item = re.search(r"\[(\d+)\]", at)
    text = text.replace("`", "")
    text = text[:1].lower() + text[1:]
    if text.startswith("invalid enum value"):
        choices = [str(choice) for choice in _choices(kind)]
        text = f"expected one of {', '.join(choices)}" if len(choices) > 2 else f"expected {' or '.join(choices)}"
        text += ", or a list" if _takes_list(kind) else ""
    elif "matching regex" in text:
        text = f"expected {_PATTERNS[name]}"
    return text + (f" in item {int(item[1]) + 1}" if item else "")


def _choices(kind: Any) -> tuple[object, ...]:  # a typing form
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return tuple(choice for part in typing.get_args(kind) for choice in _choices(part))


def _hint(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""
