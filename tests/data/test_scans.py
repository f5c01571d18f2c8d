from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnssl.data.raw import RawCase
from nnssl.data.read_errors import RIGHT_ANGLES
from nnssl.data.scans import Examined, Expected, ScanTask, count_not_finite, examine
from tests.cut_files import READER_ENDINGS, write_cut
from tests.orientations import FILE_SIZES, ORIENTATIONS, SAME, SIZES, Orientation, image_with_corner, name_of, reorient
from tests.sheared import write_sheared

SHAPE = (4, 5, 6)


def write(path: Path, voxels: np.ndarray, move_mm: float = 0.0) -> Path:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = move_mm
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def look(folder: Path, label: np.ndarray | None = None, reader: type = SimpleITKIO, move_mm: float = 0.0) -> Examined:
    """Examine one scan whose label lies `move_mm` beside the image."""
    image = write(folder / "a_0000.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
    label_file = None if label is None else write(folder / "a.nii.gz", label, move_mm)
    task = ScanTask(RawCase("a", (image,), label_file, "a"), "labelled", label is not None)
    return examine(task, Expected(reader, 1, (0, 1), ".nii.gz"))


def test_facts_are_in_the_order_of_the_array(tmp_path: Path) -> None:
    outcome = look(tmp_path)
    assert (outcome.problems, outcome.warnings) == ([], [])
    assert outcome.facts is not None
    assert outcome.facts.shape == SHAPE[::-1]
    assert outcome.facts.spacing_mm == (2.0, 1.5, 1.0)
    assert outcome.facts.orientation == "RAS"


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize(("move_mm", "warned"), [(0.009, False), (0.011, True)])
def test_a_moved_label_is_a_warning(tmp_path: Path, reader: type, move_mm: float, warned: bool) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[1, 1, 1] = 1
    outcome = look(tmp_path, label, reader, move_mm)
    assert outcome.problems == []
    assert ["the origin" in text for text in outcome.warnings] == [True] * warned


def test_a_label_of_another_shape_is_one_problem(tmp_path: Path) -> None:
    outcome = look(tmp_path, np.ones((4, 5, 7), np.uint8))
    (problem,) = outcome.problems
    assert problem.startswith("a (labelled): ")
    assert "a.nii.gz has the shape 7 x 5 x 4, a_0000.nii.gz has 6 x 5 x 4" in problem


@pytest.mark.parametrize("ending", READER_ENDINGS)
@pytest.mark.parametrize("cut", ["image", "label"])
def test_a_file_that_ends_too_early_is_a_problem(tmp_path: Path, ending: str, cut: str) -> None:
    paths = {"image": tmp_path / f"a_0000{ending}", "label": tmp_path / f"a{ending}"}
    for kind, path in paths.items():
        write_cut(path, np.ones((6, 8, 10), np.uint8))
        if kind != cut:
            path.unlink()
    reader = Tiff3DIO if ending == ".tif" else SimpleITKIO
    task = ScanTask(RawCase("a", (paths["image"],), paths["label"], "a"), "labelled", True)
    problems = examine(task, Expected(reader, 1, (0, 1), ending)).problems
    (problem,) = [text for text in problems if "does not exist" not in text]
    assert f"{paths[cut]} cannot be read" in problem
    assert problem.endswith("copy the file again from its source")


def test_values_that_are_not_finite_are_counted_in_the_file(tmp_path: Path) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[0, 0, :2] = np.nan, np.inf
    path = write(tmp_path / "a.nii.gz", voxels)
    assert count_not_finite(path, voxels) == 2
    assert count_not_finite(path, np.ones(SHAPE)) == 2  # as ITK reads the file
    assert count_not_finite(write(tmp_path / "b.nii.gz", np.ones(SHAPE, np.int16)), np.ones(SHAPE)) == 0


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("size", FILE_SIZES.values(), ids=FILE_SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=name_of)
def test_files_on_other_axes_are_a_problem(
    tmp_path: Path, orientation: Orientation, size: tuple[int, ...], reader: type
) -> None:
    """nnU-Net reads arrays in the order of the file: image and label would not lie on each other."""
    outcome = examine_turned(tmp_path, orientation, size, reader)
    if orientation == SAME:
        assert (outcome.problems, outcome.on_other_axes) == ([], False)
        return
    assert outcome.on_other_axes
    assert len(outcome.problems) == 2
    for problem, file in zip(outcome.problems, ("a", "a_0001"), strict=True):
        where = f"a (labelled): {tmp_path / file}.nii.gz lies in the same place as a_0000.nii.gz, but on other axes ("
        assert problem.startswith(where)
        assert problem.endswith("as nnssl_convert folder does")


@pytest.mark.parametrize("reader", [SimpleITKIOWithReorient, NibabelIOWithReorient])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::7], ids=name_of)
def test_a_reader_that_turns_the_arrays_itself_takes_files_on_other_axes(
    tmp_path: Path, orientation: Orientation, reader: type
) -> None:
    outcome = examine_turned(tmp_path, orientation, SIZES["volume"], reader)
    assert (outcome.problems, outcome.warnings, outcome.on_other_axes) == ([], [], False)


def examine_turned(folder: Path, orientation: Orientation, size: tuple[int, ...], reader: type) -> Examined:
    """Examine a scan whose second channel and label lie in their place on other axes."""
    images = [image_with_corner(size) + 10 * number for number in range(2)]
    for name, image in (("a_0000", images[0]), ("a_0001", reorient(images[1], orientation))):
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    sitk.WriteImage(reorient(images[0], orientation), str(folder / "a.nii.gz"))
    files = tuple(folder / f"a_000{number}.nii.gz" for number in range(2))
    task = ScanTask(RawCase("a", files, folder / "a.nii.gz", "a"), "labelled", True)
    return examine(task, Expected(reader, 2, (0, 1, 2), ".nii.gz"))


@pytest.mark.parametrize(("ending", "reader"), [(".nii.gz", NibabelIO), (".mha", SimpleITKIO), (".nrrd", SimpleITKIO)])
def test_sheared_axes_that_a_reader_takes_are_a_warning(tmp_path: Path, ending: str, reader: type) -> None:
    path = write_sheared(tmp_path / f"a_0000{ending}")
    outcome = examine(ScanTask(RawCase("a", (path,), None, "a"), "test", False), Expected(reader, 1, (), ending))
    assert outcome.problems == []
    (warning,) = outcome.warnings
    assert "the axes of the image are not at right angles" in warning
    assert warning.endswith(RIGHT_ANGLES)
