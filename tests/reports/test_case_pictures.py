from __future__ import annotations

import base64
import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from nnssl.reports import case_pictures
from nnssl.reports.case_files import CaseFiles
from nnssl.reports.case_pictures import draw_case, read_case, slice_of_interest, viewer_volumes
from tests.reports.study_for_tests import SHAPE, ball, write


def files_of(folder: Path, mask: np.ndarray) -> CaseFiles:
    image = write(ball() * 50.0, folder / "image.nii.gz")
    reference = write(ball(), folder / "reference.nii.gz")
    return CaseFiles("case", image, reference, {"A": write(mask, folder / "a.nii.gz")})


def nifti(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_the_viewer_s_volumes_are_the_cropped_files(tmp_path: Path) -> None:
    volumes = read_case(files_of(tmp_path, ball(3)))
    assert volumes is not None
    layers = viewer_volumes(volumes)
    assert list(layers) == ["image", "reference", "mask:A"]
    whole, found = nib.load(tmp_path / "a.nii.gz"), nifti(layers["mask:A"])
    assert found.get_data_dtype() == np.uint8
    assert np.asarray(found.dataobj).sum() == ball(3).sum()  # the crop loses no voxel of a mask
    for image in (whole, found):
        voxels = np.argwhere(np.asarray(image.dataobj) == 1)
        centre = nib.affines.apply_affine(image.affine, voxels.mean(axis=0))
        np.testing.assert_allclose(centre, [-23.0, -20.0, 18.0], atol=0.6)  # mm; SimpleITK counts to left and back
    assert np.asarray(nifti(layers["image"]).dataobj).max() == 255


def test_large_volumes_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_pictures, "LARGEST_REPORT", 20_000)
    volumes = read_case(files_of(tmp_path, ball(3)))
    assert volumes is not None
    found = nifti(viewer_volumes(volumes, cases=10)["reference"])
    assert np.prod(found.shape) <= 2000
    assert found.header.get_zooms()[0] > 1.0


def test_the_slice_shows_where_mask_and_reference_differ(tmp_path: Path) -> None:
    mask = ball()
    mask[8] = 0
    volumes = read_case(files_of(tmp_path, mask))
    assert volumes is not None
    assert slice_of_interest(volumes) == 8 - first_slice()
    same = read_case(files_of(tmp_path, ball()))
    assert same is not None
    assert slice_of_interest(same) == 6 - first_slice()  # the largest area of the reference


def first_slice() -> int:
    """Return the first slice of the crop: 15 mm, which are 5 slices, below the lowest slice of the ball."""
    return max(0, int(np.flatnonzero(ball().any(axis=(1, 2)))[0]) - 5)


def test_scan_reference_and_mask_stand_side_by_side(tmp_path: Path) -> None:
    volumes = read_case(files_of(tmp_path, ball(3)))
    assert volumes is not None
    picture = Image.open(io.BytesIO(draw_case(volumes, {1: "core", 2: "rim"})))
    assert picture.width == pytest.approx(3 * case_pictures.PANEL_INCH * 110, abs=2)


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    small = write(np.ones((2, 2, 2), np.uint8), tmp_path / "small.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"x")
    files = files_of(tmp_path, ball())
    found = read_case(CaseFiles("case", None, files.reference, {"A": small, "B": tmp_path / "bad.nii.gz"}))
    assert found is not None
    assert list(found.masks) == []
    assert "no image is found" in found.notes
    assert "mask of A: another shape than the reference" in found.notes
    assert "mask of B: the file cannot be read" in found.notes
    assert read_case(CaseFiles("case", files.image)) is None
    assert found.reference is not None
    assert found.reference.voxels.shape[0] <= SHAPE[0]
