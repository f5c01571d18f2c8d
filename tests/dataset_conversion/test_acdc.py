from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import (
    assert_scan,
    converted,
    label,
    names,
    read,
    refused,
    scan,
    write,
    write_4d,
)

FRAMES = {"patient001": (1, 3), "patient002": (2, 4), "patient101": (1, 2)}


def volume(patient: str, frame: int) -> np.ndarray:
    return scan(100 * int(patient[7:]) + frame)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    root = tmp_path / "ACDC"
    for patient, (ed, es) in FRAMES.items():
        folder = root / "database" / ("testing" if patient == "patient101" else "training") / patient
        volumes = [volume(patient, frame) for frame in range(1, 6)]
        write_4d(folder / f"{patient}_4d.nii.gz", volumes)
        for frame in (ed, es):
            write(folder / f"{patient}_frame{frame:02d}.nii.gz", volumes[frame - 1])
            write(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", label([1, 2, 3]))
        (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 5\nWeight: 95.0\n")
        (folder / "MANDATORY_CITATION.md").write_text("cite")
    return root


def test_frames_labels_and_patients(tmp_path: Path, monkeypatch, download: Path, capsys) -> None:
    raw = converted(tmp_path, monkeypatch, "acdc", download)
    assert raw.name == "Dataset027_ACDC"
    assert list(raw.labelled) == [
        "patient001_frame01",
        "patient001_frame03",
        "patient002_frame02",
        "patient002_frame04",
    ]
    assert list(raw.test) == ["patient101_frame01", "patient101_frame02"]
    assert not (raw.folder / "imagesUn").exists()
    for part in (raw.labelled, raw.test):
        for case in part.values():
            assert case.patient == case.name[:10]
            assert_scan(case.images[0], volume(case.patient, int(case.name[-2:])))
    assert_scan(raw.folder / "labelsTr" / "patient002_frame04.nii.gz", label([1, 2, 3]))
    assert names(raw.folder / "labelsTs") == ["patient101_frame01.nii.gz", "patient101_frame02.nii.gz"]
    assert raw.dataset_json["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert raw.dataset_json["licence"] == "CC BY-NC-SA 4.0"
    printed = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in printed
    assert "Bernard et al." in printed


def test_cine_frames_are_unlabelled_scans_of_training_patients(tmp_path: Path, monkeypatch, download: Path) -> None:
    raw = converted(tmp_path, monkeypatch, "acdc", download, "--cine")
    expected = {f"patient001_frame{n:02d}" for n in (2, 4, 5)} | {f"patient002_frame{n:02d}" for n in (1, 3, 5)}
    assert set(raw.unlabelled) == expected
    for name, case in raw.unlabelled.items():
        assert case.patient == name[:10]
        assert_scan(case.images[0], volume(name[:10], int(name[-2:])))
    voxels, image = read(raw.unlabelled["patient001_frame05"].images[0])
    assert image.GetDimension() == 3
    assert voxels.dtype == np.int16


def test_the_folder_database_itself_is_accepted(tmp_path: Path, monkeypatch, download: Path) -> None:
    assert len(converted(tmp_path, monkeypatch, "acdc", download / "database").labelled) == 4


def test_wrong_nesting_names_the_right_folder(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    message = refused(tmp_path, monkeypatch, capsys, "acdc", download / "database" / "training")
    assert f"{download / 'database'} does: give that folder to -i" in message
    assert len(message.splitlines()) == 1
