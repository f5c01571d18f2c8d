from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.geometry import Geometry, geometry_of_image
from nnssl.dataset_conversion.engine.sources import (
    Frame,
    H5Volume,
    ImageFile,
    UnreadableError,
    check_content,
    image_of,
    number_of_frames,
    read_h5,
)
from tests.dataset_conversion.miniatures import ORIGIN, ROTATED, SPACING, scan, write, write_4d

h5py = pytest.importorskip("h5py")


def test_a_file_with_one_volume(tmp_path: Path) -> None:
    image = ImageFile(write(tmp_path / "a.nii.gz", scan(0))).read()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(0))
    single = ImageFile(write_4d(tmp_path / "b.nii.gz", [scan(1)])).read()
    assert single.GetDimension() == 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(single), scan(1))
    with pytest.raises(UnreadableError, match="5x6x4x2 voxels"):
        ImageFile(write_4d(tmp_path / "c.nii.gz", [scan(1), scan(2)])).read()


def test_a_frame_is_the_volume_at_its_position(tmp_path: Path) -> None:
    path = write_4d(tmp_path / "a.nii.gz", [scan(seed) for seed in range(3)])
    assert number_of_frames(path) == 3
    for index in range(3):
        image = Frame(path, index).read()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(index))
        np.testing.assert_allclose(image.GetSpacing(), SPACING)
        np.testing.assert_allclose(image.GetOrigin(), ORIGIN)
        np.testing.assert_allclose(image.GetDirection(), ROTATED, atol=1e-6)
    with pytest.raises(UnreadableError, match="position 3"):
        Frame(path, 3).read()
    with pytest.raises(UnreadableError, match="3 axes, 4 are expected"):
        number_of_frames(write(tmp_path / "b.nii.gz", scan(0)))


def test_compression_and_ending_must_agree(tmp_path: Path) -> None:
    contents = {"good.gz": gzip.compress(b"x" * 999), "good.nii": b"x", "no.gz": b"x", "yes.nii": gzip.compress(b"x")}
    contents["cut.gz"] = contents["good.gz"][:-3]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    check_content(tmp_path / "good.gz")
    check_content(tmp_path / "good.nii")
    for name, text in (("no.gz", "is not compressed"), ("yes.nii", "does not end in .gz"), ("cut.gz", "is cut off")):
        with pytest.raises(UnreadableError, match=text):
            check_content(tmp_path / name)


def test_arrays_of_h5_files(tmp_path: Path) -> None:
    for number, array in enumerate(scan(0)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["image"] = array
    stack = H5Volume(tuple(tmp_path / f"{number}.h5" for number in range(4)), "image", (3.0, 2.0, 1.0)).read()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stack), scan(0))
    assert stack.GetSpacing() == (1.0, 2.0, 3.0)
    with pytest.raises(UnreadableError, match="no array 'label', it holds: image"):
        read_h5(tmp_path / "0.h5", "label")
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["image"] = np.array([[2**24 + 1]])
    with pytest.raises(UnreadableError, match="float32 cannot represent"):
        read_h5(tmp_path / "large.h5", "image")


def test_an_image_of_voxels_has_the_geometry_that_was_given() -> None:
    assert geometry_of_image(image_of(scan(0), SPACING, ORIGIN, ROTATED)) == Geometry(
        (5, 6, 4), SPACING, ORIGIN, ROTATED
    )
    assert geometry_of_image(image_of(scan(0), SPACING)).origin_mm == (0.0, 0.0, 0.0)
