"""The settings of every method have types: mypy reports a misspelt setting and accepts the others."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.registry import METHODS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_mypy_reports_a_misspelt_setting(tmp_path: Path) -> None:
    lines, expected = [], set()
    for name, method in METHODS.items():
        settings = [item.name for item in dataclasses.fields(method.load().config_class)]
        lines += [f"from {method.module} import {name}", f"def read_{method.name}(trainer: {name}) -> None:"]
        for setting in settings:
            lines += [f"    trainer.config.{setting}", f"    trainer.config.{setting}_misspelt"]
            expected.add((len(lines), f"{setting}_misspelt"))
    file = tmp_path / "settings.py"
    file.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-pretty", "--no-color-output", "--follow-imports=silent", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"settings\.py:(\d+): error: .* has no attribute \"(\w+)\".*\[attr-defined\]", done.stdout)
    assert len(expected) > len(METHODS)
    assert {(int(line), name) for line, name in found} == expected, done.stdout + done.stderr
    assert f"Found {len(expected)} errors in 1 file" in done.stdout
