from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from nnssl import names

ROOT = Path(__file__).parents[1]
ROOMS = ("nnssl/system", "nnssl/data", "nnssl/evaluation", "dataset_conversion")
CONSTANTS = {name: value for name, value in vars(names).items() if name.isupper()}
# A file or folder name, or a key that no other meaning can share; `labels` or `cases` may also be ordinary words.
DISTINCT = {value: name for name, value in CONSTANTS.items() if re.search(r"[A-Z._@]", value) and value != "__"}


def test_names_are_text_and_no_two_are_equal() -> None:
    assert all(isinstance(value, str) and value for value in CONSTANTS.values())
    assert len(set(CONSTANTS.values())) == len(CONSTANTS)
    assert len(DISTINCT) > 20


@pytest.mark.parametrize("room", ROOMS)
def test_no_file_repeats_a_name_as_a_literal(room: str) -> None:
    repeated = [
        f"{path.relative_to(ROOT)}:{node.lineno} {DISTINCT[node.value]}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in DISTINCT
    ]
    assert repeated == []
