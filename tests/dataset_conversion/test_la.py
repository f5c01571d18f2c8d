from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nnssl.dataset_conversion.api import convert
from tests.dataset_conversion.miniatures import assert_scan, converted, label, names, refused, scan, write

CASES = ("0RZDK210BSMWAA6467LU", "1D7CUD1955YZPGK8XHJX")
SPACING = (0.625, 0.625, 0.625)


def cavity() -> np.ndarray:
    array = np.zeros((4, 6, 5), dtype=np.uint8)
    array[1:3, 2:4, 1:4] = 255
    return array


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "LA"
    for seed, case in enumerate((*CASES, "TEST00000000000000AA")):
        folder = root / ("Training Set" if case in CASES else "Testing Set") / case
        write(folder / "lgemri.nrrd", scan(seed, dtype=np.uint8), spacing=SPACING)
        if case in CASES:
            write(folder / "laendo.nrrd", cavity(), spacing=SPACING)
            write(folder / "lawall.nrrd", cavity(), spacing=SPACING)
    return root


def test_scans_and_labels(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "la", download)
    assert raw.name == "Dataset027_LeftAtrium"
    assert tuple(raw.labelled) == CASES
    assert list(raw.test) == ["TEST00000000000000AA"]
    assert not (raw.folder / "labelsTs").exists()
    assert_scan(raw.labelled[CASES[1]].images[0], scan(1, dtype=np.uint8), SPACING)
    assert_scan(raw.labelled[CASES[1]].label, (cavity() // 255).astype(np.uint8), SPACING)
    assert raw.dataset_json["labels"] == {"background": 0, "LA": 1}


def test_a_cut_nrrd_and_a_missing_label_are_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    cut = download / "Training Set" / CASES[0] / "lgemri.nrrd"
    cut.write_bytes(cut.read_bytes()[:-40])
    (download / "Training Set" / CASES[1] / "laendo.nrrd").unlink()
    message = refused(tmp_path, monkeypatch, capsys, "la", download)
    assert f"Training Set/{CASES[0]}/lgemri.nrrd" in message
    assert f"Training Set/{CASES[1]}/laendo.nrrd is missing" in message
    assert len(message.splitlines()) == 2


def test_a_deeper_folder_is_named(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    shutil.move(download, tmp_path / "outer" / "2018_UTAH_MICCAI")
    message = refused(tmp_path, monkeypatch, capsys, "la", tmp_path / "outer")
    assert f"{tmp_path / 'outer' / '2018_UTAH_MICCAI'} does" in message
    assert names(tmp_path / "nnUNet_raw") == []


def test_a_part_that_is_missing_is_said(tmp_path: Path, monkeypatch, download: Path) -> None:
    shutil.rmtree(download / "Testing Set")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    result = convert("la", download, 27, num_processes=1)
    assert (result.labelled, result.test) == (2, 0)
    assert result.notes == (f"Testing Set is missing in {download}: its cases are left out",)


def test_a_folder_named_like_a_file_is_in_the_report(tmp_path: Path, monkeypatch, capsys) -> None:
    source = tmp_path / "la"
    (source / "Training Set" / "x" / "lgemri.nrrd").mkdir(parents=True)
    write(source / "Training Set" / "x" / "laendo.nrrd", label([1]))
    assert "lgemri.nrrd cannot be read" in refused(tmp_path, monkeypatch, capsys, "la", source)
