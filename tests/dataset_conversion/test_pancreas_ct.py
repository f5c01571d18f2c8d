from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dataset_conversion.miniatures import (
    DICOM_SPACING,
    ORIGIN,
    SIZE,
    converted,
    names,
    read,
    refused,
    scan,
    write,
    write_dicom,
)

LABELS = "TCIA_pancreas_labels-02-05-2017"
FLIPPED = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # rows that run the other way, as the labels' headers say
STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def hounsfield(number: int) -> np.ndarray:
    return (scan(number) - 1000).astype(np.int16)


def pancreas(number: int) -> np.ndarray:
    """Return a label without any symmetry, slice 0 lowest."""
    array = np.zeros(SIZE, dtype=np.uint8)
    array[0, 0, number % 5], array[1, 1, 2:4], array[2, 4, 0] = 1, 1, 1
    return array


def write_label(root: Path, number: int, array: np.ndarray, **geometry: Any) -> Path:
    geometry = {"spacing": DICOM_SPACING, "direction": FLIPPED, "origin": (0, 0, 0)} | geometry
    return write(root / LABELS / f"label{number:04d}.nii.gz", array, **geometry)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Make patients 1 and 2 (whose instance numbers run downwards), and the labels of 1, 2 and the withdrawn 25."""
    root = tmp_path / "NIH"
    for number, descending in ((1, False), (2, True)):
        series = root / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015-Pancreas-18957" / "Pancreas-99667"
        write_dicom(series, hounsfield(number), order=range(4)[::-1] if descending else range(4), series=number)
        write_label(root, number, pancreas(number)[::-1] if descending else pancreas(number))
    write_label(root, 25, pancreas(25))
    return root


def series_of(download: Path, number: int) -> Path:
    return next((download / "Pancreas-CT").glob(f"PANCREAS_{number:04d}/*/*"))


def assert_placed(path: Path, array: np.ndarray) -> None:
    voxels, image = read(path)
    np.testing.assert_array_equal(voxels, array)
    np.testing.assert_allclose(image.GetSpacing(), DICOM_SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    np.testing.assert_allclose(image.GetDirection(), STRAIGHT)


def test_series_and_labels_lie_on_each_other(tmp_path: Path, monkeypatch, download: Path, capsys) -> None:
    raw = converted(tmp_path, monkeypatch, "pancreas_ct", download)
    assert raw.name == "Dataset027_PancreasCT"
    assert list(raw.labelled) == ["PANCREAS_0001", "PANCREAS_0002"]
    assert raw.dataset_json["labels"] == {"background": 0, "pancreas": 1}
    assert raw.dataset_json["channel_names"] == {"0": "CT"}
    for number, case in enumerate(raw.labelled.values(), 1):
        assert_placed(case.images[0], hounsfield(number))
        assert_placed(case.label, pancreas(number))
        assert read(case.images[0])[0].dtype == np.int16
    assert "CC BY 3.0" in capsys.readouterr().out


def test_a_label_whose_header_agrees_is_taken_as_it_is(tmp_path: Path, monkeypatch, download: Path) -> None:
    write_label(download, 2, pancreas(2), direction=STRAIGHT, origin=ORIGIN)  # not in the order of instance numbers
    raw = converted(tmp_path, monkeypatch, "pancreas_ct", download)
    assert_placed(raw.labelled["PANCREAS_0002"].label, pancreas(2))


def test_labels_are_matched_by_instance_number(tmp_path: Path, monkeypatch, download: Path) -> None:
    folder = series_of(download, 1)
    order = [2, 0, 3, 1]  # slice of each instance number, lowest first
    for path in folder.iterdir():
        path.unlink()
    write_dicom(folder, hounsfield(1), order=order)
    write_label(download, 1, pancreas(1)[order])
    raw = converted(tmp_path, monkeypatch, "pancreas_ct", download)
    assert_placed(raw.labelled["PANCREAS_0001"].images[0], hounsfield(1))
    assert_placed(raw.labelled["PANCREAS_0001"].label, pancreas(1))


def test_scans_that_repeat_scan_2_are_left_out_and_named(tmp_path: Path, monkeypatch, download: Path, capsys) -> None:
    shutil.copytree(series_of(download, 2).parents[1], download / "Pancreas-CT" / "PANCREAS_0070")
    raw = converted(tmp_path, monkeypatch, "pancreas_ct", download)
    assert list(raw.labelled) == ["PANCREAS_0001", "PANCREAS_0002"]
    assert "PANCREAS_0070 repeat scan 2" in capsys.readouterr().out


def test_every_problem_is_in_one_report(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    write_dicom(download / "Pancreas-CT" / "PANCREAS_0003" / "a" / "b", hounsfield(3), series=3)
    write_dicom(download / "Pancreas-CT" / "PANCREAS_0004" / "a" / "b", hounsfield(4), series=4)
    write_dicom(download / "Pancreas-CT" / "PANCREAS_0005" / "a" / "b", hounsfield(5), series=5)
    write_dicom(download / "Pancreas-CT" / "PANCREAS_0005" / "a" / "c", hounsfield(5), series=6)
    (download / "Pancreas-CT" / "PANCREAS_0006").mkdir()
    (series_of(download, 1) / "1-2.dcm").unlink()
    write_label(download, 2, pancreas(2)[1:])
    write_label(download, 4, pancreas(4), spacing=(1.5, 1.25, 1.0))
    write_label(download, 5, pancreas(5))
    write_label(download, 7, pancreas(7))
    message = refused(tmp_path, monkeypatch, capsys, "pancreas_ct", download)
    for text in (
        "1-1.dcm belongs to a series that lacks slices: 1 between 1-1.dcm and 1-3.dcm",
        "label0002.nii.gz has 5 x 6 x 3 voxels, its image has 5 x 6 x 4",
        "label0003.nii.gz is missing",
        "label0004.nii.gz has the spacing 1.5 x 1.25 x 1 mm, its image has 1.5 x 1.25 x 2 mm",
        "PANCREAS_0005 holds 2 series (a/b, a/c)",
        "PANCREAS_0006 holds no .dcm file",
        "label0007.nii.gz has no folder PANCREAS_0007",
    ):
        assert text in message
    assert len(message.splitlines()) == 7


def test_wrong_nesting_names_the_right_folder(tmp_path: Path, monkeypatch, capsys, download: Path) -> None:
    message = refused(tmp_path, monkeypatch, capsys, "pancreas_ct", download.parent)
    assert f"{download} does: give that folder to -i" in message
    assert names(tmp_path / "nnUNet_raw") == []
