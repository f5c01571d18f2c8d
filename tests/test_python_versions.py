"""The templates for other Pythons and systems name the versions that the package promises."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_tox_and_the_workflow_begin_with_the_oldest_python_and_leave_none_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    minors = [int(text) for text in re.findall(r"py3(\d+)", tox["tox"]["envlist"])]
    assert minors == list(range(minors[0], minors[0] + len(minors)))
    assert project["requires-python"] == f">=3.{minors[0]}"
    assert {extra.strip() for extra in tox["testenv"]["extras"].split(",")} <= set(project["optional-dependencies"])
    workflow = (ROOT / ".ci" / "github-actions.yml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"python: \[(.*)\]", workflow)
    assert [int(text) for text in re.findall(r"3\.(\d+)", listed)] == minors
    for system in ("macos", "windows"):
        found = re.findall(rf'os: {system}-latest, python: "3\.(\d+)"', workflow)
        assert [int(text) for text in found] == [minors[0], minors[-1]]
