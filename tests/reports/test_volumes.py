from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.errors import DataError
from nnssl.reports.volumes import Volume, case_of, grey_levels, occupied_box, read_volume
from tests.reports.study_for_tests import write


def marked() -> np.ndarray:
    """Return a volume (D, H, W) = (4, 5, 6) with one bright voxel at z 1, y 2, x 4."""
    array = np.zeros((4, 5, 6), np.int16)
    array[1, 2, 4] = 100
    return array


def place_in_nifti(volume: Volume) -> np.ndarray:
    """Return mm towards right, anterior, superior of the brightest voxel, by the affine."""
    z, y, x = np.unravel_index(volume.voxels.argmax(), volume.voxels.shape)
    return (volume.affine @ [x, y, z, 1])[:3]


def test_an_affine_leads_to_the_place_of_a_voxel(tmp_path: Path) -> None:
    volume = read_volume(write(marked(), tmp_path / "a.nii.gz", (0.5, 2.0, 3.0)))
    assert volume.spacing_mm == (3.0, 2.0, 0.5)
    assert volume.voxel_ml == pytest.approx(0.003)
    np.testing.assert_allclose(place_in_nifti(volume), [-4 * 0.5, -2 * 2.0, 1 * 3.0])


def test_flipped_axes_come_back_to_the_same_axes(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(marked())
    image.SetSpacing((0.5, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "plain.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "PIR"), str(tmp_path / "turned.nii.gz"))
    plain, turned = read_volume(tmp_path / "plain.nii.gz"), read_volume(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(plain.voxels, turned.voxels)
    np.testing.assert_allclose(plain.affine, turned.affine, atol=1e-5)


def test_a_plane_picture_has_one_slice_and_its_first_channel(tmp_path: Path) -> None:
    rgb = np.zeros((7, 9, 3), np.uint8)
    rgb[2, 3] = (200, 10, 30)
    sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(tmp_path / "a.png"))
    volume = read_volume(tmp_path / "a.png")
    assert volume.voxels.shape == (1, 7, 9)
    assert volume.voxels[0, 2, 3] == 200


def test_a_crop_keeps_the_place_of_its_voxels(tmp_path: Path) -> None:
    volume = read_volume(write(marked(), tmp_path / "a.nii.gz", (0.5, 2.0, 3.0)))
    part = volume.cropped((slice(1, 4), slice(0, 5), slice(2, 6)), (1, 2, 2))
    assert part.voxels.shape == (3, 3, 2)
    assert part.spacing_mm == (3.0, 4.0, 1.0)
    np.testing.assert_allclose(place_in_nifti(part), place_in_nifti(volume))


def test_percentiles_become_black_and_white() -> None:
    values = np.arange(1001, dtype=float).reshape(7, 11, 13)
    grey = grey_levels(values)
    assert grey.flat[5] == 0  # the 0.5 percentile
    assert grey.flat[500] == 128  # 127.5, rounded to even
    assert grey.flat[995] == 255
    assert grey_levels(np.array([[[np.nan, 1.0]]])).dtype == np.uint8
    assert not grey_levels(np.full((2, 2, 2), 5.0)).any()


def test_a_box_holds_all_masks_and_a_margin() -> None:
    first, second = np.zeros((6, 8, 10)), np.zeros((6, 8, 10))
    first[2, 3, 4], second[4, 3, 9] = 1, 2
    assert occupied_box([first, second], (6, 8, 10), (1, 0, 2)) == (slice(1, 6), slice(3, 4), slice(2, 10))
    assert occupied_box([0 * first], (6, 8, 10), (1, 1, 1)) == (slice(0, 6), slice(0, 8), slice(0, 10))


@pytest.mark.parametrize(("name", "case"), [("a.b_0000.nii.gz", "a.b_0000"), ("x.PNG", "x"), ("x.dat", "x")])
def test_a_case_is_a_name_without_ending(name: str, case: str) -> None:
    assert case_of(Path(name)) == case


def test_unreadable_files_have_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        read_volume(tmp_path / "bad.nii.gz")
