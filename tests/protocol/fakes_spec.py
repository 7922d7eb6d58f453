"""Reads tables out of the written specification."""

import re
from pathlib import Path

SPEC = Path(__file__).parents[2] / "protocol" / "spec"


def section(page: str, title: str) -> str:
    """Return the text between a heading that contains ``title`` and the next heading."""
    text = (SPEC / page).read_text("utf-8")
    found = re.search(rf"^## [^\n]*{re.escape(title)}[^\n]*\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no section {title}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of the tables in ``text`` by what stands in backticks in their first cell."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        for name in re.findall(r"`([^`]+)`", cells[0]) if line.startswith("| `") else ():
            found[name] = cells
    return found
