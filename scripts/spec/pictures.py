"""Draws the state tables of ``protocol/states.py`` into the specification, between its marks."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from protocol.states import (
    PROVIDER_TRANSITIONS,
    REQUESTER_TRANSITIONS,
    ProviderState,
    RequesterState,
    is_final,
)

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)
SPEC: Final = Path(__file__).parent.parent.parent / "protocol" / "spec" / "07-states.md"


def picture(table: Mapping[tuple[S, E], S], first: S) -> str:
    """Return a mermaid diagram of one table; events that join the same states share an arrow."""
    arrows: dict[tuple[S, S], list[str]] = {}
    for (source, event), target in table.items():
        arrows.setdefault((source, target), []).append(event)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in arrows.items()]
    lines += [
        f"    {state} --> [*]"
        for state in type(first)
        if isinstance(state, ProviderState | RequesterState) and is_final(state)
    ]
    return "\n".join([*lines, "```"])


def rows(table: Mapping[tuple[S, E], S]) -> str:
    """Return one table as Markdown."""
    lines = ["| state | event | next |", "| --- | --- | --- |"]
    lines += [f"| `{source}` | `{event}` | `{target}` |" for (source, event), target in table.items()]
    return "\n".join(lines)


def drawn(text: str) -> str:
    """Return the specification's text with current tables and pictures."""
    parts = {
        "provider picture": picture(PROVIDER_TRANSITIONS, ProviderState.IDLE),
        "provider table": rows(PROVIDER_TRANSITIONS),
        "requester picture": picture(REQUESTER_TRANSITIONS, RequesterState.IDLE),
        "requester table": rows(REQUESTER_TRANSITIONS),
    }
    for name, part in parts.items():
        begin, end = f"<!-- {name}: drawn by scripts/draw_states -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        assert found, f"no mark for the {name}"
        text = f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Write the specification's page anew."""
    SPEC.write_text(drawn(SPEC.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
