"""The README: short, with links that lead somewhere, and a table of what was measured; and the page of commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from nnssl.chooser import ADVICE, costs
from nnssl.registry import METHODS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[list[str]]:
    """Return the rows below the header that begins with a cell."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w./-]+\.(?:md|png|cff)|[\w./]+/[\w.-]+|LICENSE)(?:#[\w-]+)?\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_table_of_methods_says_what_was_measured() -> None:
    rows = cells(README, "`-tr`")
    assert [row[0] for row in rows] == [f"[`{m.class_name}`](docs/methods/{m.name}.md)" for m in METHODS.values()]
    table = costs()["2d"]
    for trainer, row in zip(METHODS, rows, strict=True):
        assert (float(row[2]), float(row[3])) == (table[trainer].time, table[trainer].memory)
        gains = [float(text) for text in re.findall(r"[+-]\d+\.\d", row[1])]
        assert gains == list(ADVICE[trainer].gains)
        assert ("¹" in row[1]) == bool(ADVICE[trainer].settings)


def test_the_page_of_commands_lists_every_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    rows = cells((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), "command")
    assert sorted(name for row in rows for name in re.findall(r"`(nnssl_\w+)`", row[0])) == sorted(scripts)
    completed = (ROOT / "docs" / "completion.md").read_text(encoding="utf-8")
    assert set(re.findall(r"nnssl_\w+", completed)) >= set(scripts)
