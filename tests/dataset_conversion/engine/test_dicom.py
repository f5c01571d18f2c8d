from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.dataset_conversion.engine.dicom import DicomSeries, ordered_slices, placement_of
from nnssl.dataset_conversion.engine.sources import UnreadableError
from tests.dataset_conversion.miniatures import DICOM_SPACING, ORIGIN, scan, write_dicom

VOXELS = (scan(1) - 1000).astype(np.int16)


def paths(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.dcm")))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_slices_are_ordered_by_position(tmp_path: Path, order: list[int]) -> None:
    folder = write_dicom(tmp_path, VOXELS, order=order)
    image = DicomSeries(paths(folder)).read()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOXELS)
    np.testing.assert_allclose(image.GetSpacing(), DICOM_SPACING)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
    slices = ordered_slices(paths(folder))
    assert [order[one.instance - 1] for one in slices] == [0, 1, 2, 3]
    origin, direction = placement_of(slices)
    assert (origin, direction) == ([*ORIGIN], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])


def test_values_beyond_16_bits_are_kept(tmp_path: Path) -> None:
    voxels = VOXELS.astype(np.int32)
    voxels[2, 0, 0] = 40_000
    read = sitk.GetArrayFromImage(DicomSeries(paths(write_dicom(tmp_path, voxels.astype(np.uint16)))).read())
    assert read[2, 0, 0] == 40_000
    assert sitk.GetArrayFromImage(DicomSeries(paths(write_dicom(tmp_path / "b", VOXELS))).read()).dtype == np.int16


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda folder: [path.unlink() for path in sorted(folder.iterdir())[1:]], "is the only slice"),
        (lambda folder: shutil.copy(folder / "1-2.dcm", folder / "1-9.dcm"), "have the same position"),
        (lambda folder: write_dicom(folder, VOXELS[:1], series=9), "slices of 2 series"),
        (lambda folder: (folder / "1-3.dcm").write_bytes(b"<html>"), "1-3.dcm"),
        (lambda folder: write_dicom(folder, VOXELS, shifts_mm={3: 6.0}), "3 between 1-3.dcm and 1-4.dcm"),
    ],
)
def test_broken_series_are_explained(tmp_path: Path, break_it: Callable[[Path], object], text: str) -> None:
    folder = write_dicom(tmp_path / "series", VOXELS)
    break_it(folder)
    with pytest.raises(UnreadableError, match=text):
        DicomSeries(paths(folder)).read()


def test_rounded_positions_are_no_gap(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series", VOXELS, shifts_mm={1: 0.05})
    image = DicomSeries(paths(folder)).read()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VOXELS)
