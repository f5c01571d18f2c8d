from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.comparison.sources import Compared, read_source
from nnssl.reports.case_files import dataset_of, files_of_cases, object_of, run_folders
from tests.comparison.folders_for_tests import DATASET, numbered, write_run
from tests.reports.study_for_tests import make_study


def compared(folder: Path, name: str = "") -> Compared:
    source = read_source(folder)
    return Compared(name or source.name, (source,))


def test_files_stand_where_the_summary_says(tmp_path: Path) -> None:
    study = make_study(tmp_path, cases=2, hostile=False)
    files = files_of_cases([compared(study.baseline), compared(study.method)])
    assert list(files) == ["case_00", "case_01"]
    found = files["case_01"]
    assert found.reference == study.labels / "case_01.nii.gz"
    assert found.image == study.images / "case_01_0000.nii.gz"
    assert dict(found.masks) == {
        "SupervisedTrainer": study.baseline / "case_01.nii.gz",
        "FixMatchTrainer": study.method / "case_01.nii.gz",
    }


def test_moved_references_are_found_in_the_preprocessed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    fold = write_run(tmp_path / "results", "FixMatchTrainer", numbered([0.5]))
    truth = tmp_path / "pre" / DATASET / "gt_segmentations" / "case_00.nii.gz"
    truth.parent.mkdir(parents=True)
    truth.touch()
    method = compared(fold)
    assert dataset_of([method]) == DATASET
    found = files_of_cases([method])["case_00"]
    assert (found.reference, found.image, dict(found.masks)) == (truth, None, {})


def test_stored_pseudo_labels_belong_to_their_scans(tmp_path: Path) -> None:
    fold = write_run(tmp_path, "SelfTrainingTrainer", numbered([0.5, 0.6]))
    for name in ("case_01.nii.gz", "case_01_confidence.nii.gz", "cases.json"):
        (fold / "pseudo_labels").mkdir(exist_ok=True)
        (fold / "pseudo_labels" / name).touch()
    files = files_of_cases([compared(fold)])
    assert files["case_00"].pseudo_label is None
    assert files["case_01"].pseudo_label == fold / "pseudo_labels" / "case_01.nii.gz"


def test_predictions_lead_to_the_runs_that_made_them(tmp_path: Path) -> None:
    fold = write_run(tmp_path / "results", "FixMatchTrainer", numbered([0.5]))
    study = make_study(tmp_path / "study", cases=1, hostile=False)
    assert run_folders(compared(study.method)) == []
    record = {"nnssl_semi": {"model": str(fold.parent)}}
    (study.method / "predict_from_raw_data_args.json").write_text(json.dumps(record))
    assert run_folders(compared(study.method)) == [fold]
    assert run_folders(compared(fold)) == [fold]


def test_a_missing_or_broken_file_is_an_empty_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    assert object_of(tmp_path / "a.json") == object_of(tmp_path / "b.json") == {}
