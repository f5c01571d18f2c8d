from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnssl.data.raw import RawCase
from nnssl.data.scans import Examined, Expected, ScanTask, count_not_finite, examine, gzip_is_complete

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


def test_complete_and_cut_gzip_files(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    content = gzip.compress(bytes(range(256)) * 500)
    for data, complete in ((content, True), (content * 2, True), (content + b"\0" * 512, True), (content[:-1], False)):
        path.write_bytes(data)
        assert gzip_is_complete(path) == complete


def test_values_that_are_not_finite_are_counted_in_the_file(tmp_path: Path) -> None:
    voxels = np.ones(SHAPE, np.float32)
    voxels[0, 0, :2] = np.nan, np.inf
    path = write(tmp_path / "a.nii.gz", voxels)
    assert count_not_finite(path, voxels) == 2
    assert count_not_finite(path, np.ones(SHAPE)) == 2  # as ITK reads the file
    assert count_not_finite(write(tmp_path / "b.nii.gz", np.ones(SHAPE, np.int16)), np.ones(SHAPE)) == 0
