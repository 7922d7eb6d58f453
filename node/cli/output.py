"""How results are printed: aligned columns for people, JSON for programs; and numbers in a person's units."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from node.cli.options import Globals

if TYPE_CHECKING:
    from rich.console import Console

Payload: TypeAlias = Mapping[str, Any]
"""A decoded JSON object of the daemon; a command shows it and decides nothing by it."""


def emit(options: Globals, payload: Payload, *, rows: str | None = None, table: Callable[[Payload], str]) -> None:
    """Print one result on standard output.

    Args:
        options: says in which form.
        payload: the daemon's answer, printed as it is for ``json``.
        rows: the key of its list, one line each for ``jsonl``.
        table: makes the text for people.
    """
    match options.output:
        case "json":
            print(json.dumps(payload, indent=2, ensure_ascii=False))
        case "jsonl":
            for item in payload[rows] if rows else [payload]:
                print(json.dumps(item, ensure_ascii=False))
        case _:
            text = table(payload)
            if text:
                print(text)


def note(options: Globals, text: str) -> None:
    """Tell a person something that is not the result."""
    if not options.quiet:
        print(text, file=sys.stderr, flush=True)


def console(options: Globals, *, stderr: bool = False) -> "Console":
    """Return what progress and live views are drawn on; it has colours only where the user wants them."""
    from rich.console import Console

    return Console(stderr=stderr, no_color=options.is_plain)


def columns(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with two spaces between columns; numbers stand on the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in (list(titles), *cells)) for i in range(len(titles))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(titles))]
    lines = [
        "  ".join(
            text.rjust(width) if end else text.ljust(width)
            for text, width, end in zip(line, widths, right, strict=True)
        )
        for line in (list(titles), *cells)
    ]
    return "\n".join(line.rstrip() for line in lines)


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Return one ``name  value`` a line, without those that are None."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{name.ljust(width)}  {_cell(value)}".rstrip() for name, value in known)


def size(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def money(microcredits: int | None) -> str:
    return "-" if microcredits is None else f"{microcredits:,} µc"


def moment(at_ms: int | None) -> str:
    """Return a time of the protocol, to the second, in UTC."""
    return "-" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def short(identifier: str | None) -> str:
    """Return an id as people compare it: peer ids differ at their end, hashes anywhere."""
    if not identifier:
        return "-"
    if identifier.startswith("12D3KooW"):
        return f"…{identifier[-8:]}"
    return identifier[:12]


def harmless(text: str, *, keep: str = "") -> str:
    """Return ``text`` of a peer for a terminal, where control characters clear the screen or forge a prompt."""
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case _:
            return harmless(str(value))
