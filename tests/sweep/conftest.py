from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.studies_for_tests import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)
