from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataset_conversion.miniatures import label, scan, use_raw, write


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    """Make a download of three labelled images; return its folder, and the folder of the data set to make from it."""
    source = tmp_path / "mine"
    for seed, case in enumerate("abc"):
        write(source / "images" / f"{case}.nrrd", scan(seed))
        write(source / "labels" / f"{case}.nrrd", label([1]))
    return source, use_raw(tmp_path, monkeypatch) / "Dataset005_Folder"
