"""One setting of a TOML text, changed or taken out by hand, so to speak: comments and order stay. Pure.

No library for it: what is edited is one key on one line, and the result is parsed again before it is believed.
"""

import contextlib
import json
import re
import tomllib

from node.config_file import locate
from node.errors import ConfigError


def with_setting(text: str, name: str, value: object) -> str:
    """Return ``text`` with ``section.key`` set to ``value``: in its place, else in its section, else at the end.

    Raises:
        ConfigError: the file is written in a way that cannot be edited by line.
    """
    section, _, key = name.partition(".")
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    lines = text.splitlines()
    header = next((i for i, it in enumerate(lines) if re.match(rf"\s*\[\s*{section}\s*\]", it)), None)
    present = is_set(text, name)
    at = locate(text, name)
    if present and at is not None:
        comment = re.search(r'\s+#[^"\']*$', lines[at - 1])
        lines[at - 1] = line + (comment[0] if comment else "")
    elif header is not None:
        lines.insert(header + 1, line)
    else:
        lines += [*([""] if lines else []), f"[{section}]", line]
    changed = "\n".join(lines) + "\n"
    if not _is_only_change(text, changed, name, value):
        raise ConfigError([f"{name} cannot be changed by line here: edit the file (souk config path)"])
    return changed


def without_setting(text: str, name: str) -> str:
    """Return ``text`` without ``section.key``, which is set there; the header of its section stays.

    Raises:
        ConfigError: the file is written in a way that cannot be edited by line.
    """
    section, _, key = name.partition(".")
    wanted = _parse(text)
    table = wanted[section]
    assert isinstance(table, dict)
    del table[key]
    lines = text.splitlines(keepends=True)
    at = locate(text, name) or len(lines) + 1
    # A list may go on over several lines: as many go as leave the rest what it was.
    for end in range(at, len(lines) + 1):
        changed = "".join(lines[: at - 1] + lines[end:])
        with contextlib.suppress(tomllib.TOMLDecodeError):
            if _without_empty(tomllib.loads(changed)) == _without_empty(wanted):
                return changed
    raise ConfigError([f"{name} cannot be taken out by line here: edit the file (souk config edit)"])


def _without_empty(tables: dict[str, object]) -> dict[str, object]:
    return {name: table for name, table in tables.items() if table != {}}


def is_set(text: str, name: str) -> bool:
    """Say whether ``section.key`` has a value in ``text``. Raises: ConfigError (it is no TOML)."""
    section, _, key = name.partition(".")
    table = _parse(text).get(section)
    return isinstance(table, dict) and key in table


def _is_only_change(before: str, after: str, name: str, value: object) -> bool:
    section, _, key = name.partition(".")
    expected = _parse(before)
    table = expected.setdefault(section, {})
    if not isinstance(table, dict):
        return False
    table[key] = list(value) if isinstance(value, tuple) else value
    try:
        return tomllib.loads(after) == expected
    except tomllib.TOMLDecodeError:
        return False


def _parse(text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError([f"the file is no TOML, correct it first: {exc}"]) from exc
