from __future__ import annotations

import json
import math

import pytest

from nnssl.comparison.scores import METRICS, merge_scores, read_scores
from nnssl.errors import DataError
from nnssl.evaluation.api import evaluate
from tests.comparison.folders_for_tests import numbered, write_dataset_json, write_summary
from tests.evaluation.folders_for_tests import write_folders


def test_a_summary_of_nnssl(tmp_path) -> None:
    references, predictions = write_folders(tmp_path)
    result = evaluate(references, predictions)
    scores = read_scores(predictions / "summary.json")
    assert list(scores.cases) == [f"case_{i}" for i in range(4)]
    assert scores.structures == {"1": "core", "2": "rim"}
    assert scores.cases["case_2"]["2"]["hd95_mm"] == result.cases["case_2"][2]["hd95_mm"]
    assert set(METRICS) - {"hd95_vox_pooled", "asd_vox"} <= set(scores.cases["case_0"]["1"])


def test_a_summary_of_stock_nnunet(tmp_path) -> None:
    """Stock nnU-Net writes it, with regions, and NaN where a structure is in neither mask."""
    from nnunetv2.evaluation.evaluate_predictions import save_summary_json

    row = {"Dice": 0.5, "IoU": 1 / 3, "n_ref": 10, "n_pred": 20}
    metrics = {1: row, (1, 2): {**row, "Dice": float("nan")}}
    files = {"reference_file": "/r/a.1_case.nii.gz", "prediction_file": "/p/a.1_case.nii.gz"}
    content = {"metric_per_case": [{**files, "metrics": metrics}], "mean": metrics, "foreground_mean": row}
    save_summary_json(content, str(tmp_path / "summary.json"))
    write_dataset_json(tmp_path)
    scores = read_scores(tmp_path / "summary.json")
    assert scores.structures == {"1": "core", "(1, 2)": "whole"}
    assert scores.cases["a.1_case"]["1"]["Dice"] == 0.5
    assert math.isnan(scores.cases["a.1_case"]["(1, 2)"]["Dice"])
    assert scores.patients == {}


def test_the_background_does_not_count_and_null_is_nan(tmp_path) -> None:
    write_summary(tmp_path, {"a": {"0": {"Dice": 1.0}, "3": {"Dice": None}}})
    scores = read_scores(tmp_path / "summary.json")
    assert list(scores.cases["a"]) == ["3"]
    assert math.isnan(scores.cases["a"]["3"]["Dice"])
    assert scores.structures == {"3": "label 3"}


@pytest.mark.parametrize(
    ("file", "case"),
    [
        ("/x/a.b_c.nii.gz", "a.b_c"),
        ("C:\\x\\scan.mha", "scan"),
        ("scan.NII.GZ", "scan"),
        ("photo.png", "photo"),
        ("odd.xyz", "odd"),
    ],
)
def test_names_of_cases(file: str, case: str, tmp_path) -> None:
    row = {"prediction_file": file, "metrics": {"1": {"Dice": 0.1}}}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [row]}))
    assert list(read_scores(tmp_path / "summary.json").cases) == [case]


def test_patients_stand_beside_the_scores_above_them_or_in_the_preprocessed_data(tmp_path, monkeypatch) -> None:
    fold = tmp_path / "results" / "Dataset001_A" / "T__P__2d" / "fold_0"
    write_summary(fold / "validation", numbered([0.1, 0.2]))

    def read():
        return read_scores(fold / "validation" / "summary.json").patients

    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert read() == {}
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    write_dataset_json(tmp_path / "pre" / "Dataset001_A", {"case_00": "data set"})
    assert read() == {"case_00": "data set"}
    write_dataset_json(fold.parent, {"case_00": "model"})
    assert read() == {"case_00": "model"}
    write_dataset_json(fold / "validation", {"case_00": "run", "case_01": "run"})
    assert read() == {"case_00": "run", "case_01": "run"}


def test_patients_of_predictions_by_the_data_set_in_their_plans(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    write_dataset_json(tmp_path / "pre" / "Dataset007_B", {"case_00": "p"})
    folder = write_summary(tmp_path / "predictions", numbered([0.1]))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": "Dataset007_B"}))
    assert read_scores(folder / "summary.json").patients == {"case_00": "p"}


def test_folds_are_merged_and_no_case_is_in_two(tmp_path) -> None:
    parts = [
        read_scores(write_summary(tmp_path / name, {case: 0.5}) / "summary.json") for name, case in ("xa", "yb", "za")
    ]
    merged = merge_scores(parts[:2])
    assert (set(merged.cases), merged.folders) == ({"a", "b"}, (tmp_path / "x", tmp_path / "y"))
    with pytest.raises(DataError, match="several folds"):
        merge_scores(parts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"mean": {}}', "incomplete"),
        ('{"metric_per_case": []}', "no case"),
        ('{"metric_per_case": 3}', "no summary"),
        ('{"metric_per_case": [3]}', "no summary"),
        ('{"metric_per_case": [{"metrics": {}}]}', "no summary"),
        ('{"metric_per_case": [{"reference_file": "a.nii.gz", "metrics": {"1": {"Dice": "high"}}}]}', "no summary"),
        ('{"metric_per_case": [{"reference_file": "a.nii.gz", "metrics": {"1": 0.5}}]}', "no summary"),
        ('{"metric_per_case": [{"reference_file": 5, "metrics": {}}]}', "no summary"),
        (
            '{"metric_per_case": [{"reference_file": "a", "metrics": {}}, {"reference_file": "a", "metrics": {}}]}',
            "twice",
        ),
    ],
)
def test_what_is_no_summary_is_refused(content: str, words: str, tmp_path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DataError, match=words):
        read_scores(tmp_path / "summary.json")
