from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnssl.errors import DataError, UsageError
from nnssl.reports import look as module
from nnssl.reports.look import centre_of, label_volumes, look, plane_slices
from nnssl.reports.volumes import read_volume
from tests.reports.study_for_tests import Study, make_study, write


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return make_study(tmp_path / "study", cases=4, hostile=False)


def test_every_folder_has_its_own_scores(study: Study) -> None:
    """Balls that a method moves by 1 voxel overlap more than those that the baseline moves by 4."""
    folders = (study.labels, study.baseline, study.method)
    scores = {folder: module._scores(folder) for folder in folders}
    rows = list(module._rows("case_00", study.images / "case_00_0000.nii.gz", scores))
    assert [row.name for row in rows] == ["labelsTs", "SupervisedTrainer", "FixMatchTrainer"]
    none, baseline, method = (row.score for row in rows)
    assert none is None
    for folder, score in ((study.baseline, baseline), (study.method, method)):
        entries = json.loads((folder / "summary.json").read_text())["metric_per_case"]
        metrics = next(each["metrics"] for each in entries if "case_00" in each["prediction_file"])
        assert score == pytest.approx(np.mean([values["Dice"] for values in metrics.values()]))
    assert method > baseline


def test_the_worst_cases_of_a_folder_come_first(study: Study, tmp_path: Path) -> None:
    sheet = look(study.images, [study.labels, study.baseline], cases=2)
    assert sheet.file == Path("imagesTs_look.png")
    assert sheet.cases == ("case_02", "case_01")  # moved by 6 and 5 voxels, the others by 4
    assert len(sheet.left_out) == 2
    one = look(study.images, [study.labels], output_file=tmp_path / "b.png", cases=2)
    assert one.cases == ("case_00", "case_01")  # without scores by name
    two_masks, one_mask = (Image.open(file).height for file in (sheet.file, one.file))
    assert two_masks > 1.8 * one_mask


def test_one_scan_with_a_mask(study: Study) -> None:
    scan, mask = study.images / "case_00_0000.nii.gz", study.labels / "case_00.nii.gz"
    sheet = look(scan, [mask])
    assert (sheet.file, sheet.cases) == (Path("case_00_look.png"), ("case_00",))
    with_mask = np.asarray(Image.open(sheet.file).convert("RGB")).astype(int)
    alone = np.asarray(Image.open(look(scan).file).convert("RGB")).astype(int)
    assert colourful(with_mask) > 200
    assert colourful(alone) == 0


def colourful(picture: np.ndarray) -> int:
    return int(((picture.max(axis=2) - picture.min(axis=2)) > 60).sum())


def test_volumes_are_in_millilitres(tmp_path: Path) -> None:
    mask = np.zeros((4, 10, 10), np.uint8)
    mask[:2], mask[2, 0, 0] = 1, 3
    volume = read_volume(write(mask, tmp_path / "a.nii.gz", (2.0, 5.0, 10.0)))  # 0.1 ml a voxel
    assert label_volumes(volume, {1: "liver"}) == pytest.approx({"liver": 20.0, "label 3": 0.1})


def test_planes_pass_through_the_largest_areas_with_superior_up() -> None:
    mask = np.zeros((5, 7, 9), np.uint8)
    mask[1, 2:6, 3:8], mask[3, 4, 5] = 2, 1
    assert centre_of(mask, mask.shape) == [1, 4, 5]
    assert centre_of(0 * mask, mask.shape) == [2, 3, 4]
    voxels = np.arange(24).reshape(2, 3, 4)
    axial, coronal, sagittal = plane_slices(voxels, (1, 2, 3))
    np.testing.assert_array_equal(axial, voxels[1])
    np.testing.assert_array_equal(coronal, [voxels[1, 2], voxels[0, 2]])
    np.testing.assert_array_equal(sagittal, [voxels[1, :, 3], voxels[0, :, 3]])


def test_wrong_arguments_write_no_picture(study: Study, tmp_path: Path) -> None:
    small = write(np.ones((2, 2, 2), np.uint8), tmp_path / "small.nii.gz")
    scan = study.images / "case_00_0000.nii.gz"
    for error, arguments, options in (
        (UsageError, (scan,), {"cases": 0}),
        (UsageError, (scan,), {"output_file": "a.jpg"}),
        (DataError, (tmp_path / "none",), {}),
        (DataError, (scan, [small]), {}),
        (DataError, (scan, [tmp_path / "none.nii.gz"]), {}),
    ):
        with pytest.raises(error):
            look(*arguments, **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no scan"):
        look(tmp_path / "empty")
    assert list(tmp_path.glob("*.png")) == []
