from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.reports.data_facts import check_of, data_table, dataset_json_of
from nnssl.training.record import RunRecord
from tests.comparison.folders_for_tests import DATASET, write_run

CONTENT = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}}


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    folder = tmp_path / "pre" / DATASET
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(CONTENT))
    scan = {"kind": "labelled", "spacing_mm": [3, 1, 1], "shape": [10, 40, 50]}
    other = {"kind": "unlabelled", "spacing_mm": [5, 1, 1], "shape": [20, 40, 50]}
    check = {"scans": {"a": scan, "b": other, "c": {**other, "shape": [30, 42, 50]}}, "warnings": ["look"]}
    (folder / "data_check@lab7.json").write_text(json.dumps(check))
    return folder


def test_the_check_of_the_label_budget_is_read(preprocessed: Path) -> None:
    assert check_of(DATASET, "nnUNetPlans@lab7")["warnings"] == ["look"]
    assert check_of(DATASET, "nnUNetPlans") == {}
    assert check_of("", "nnUNetPlans@lab7") == {}


def test_data_facts_have_medians_of_each_kind(preprocessed: Path, tmp_path: Path) -> None:
    fold = write_run(tmp_path, "FixMatchTrainer", None, plans="nnUNetPlans@lab7", labelled="7")
    record = RunRecord.read(fold)
    rows = dict(data_table(DATASET, dataset_json_of(DATASET, []), record).rows)
    assert rows["channels"] == "MRI"
    assert rows["labels"] == "background, heart"
    assert rows["label budget"] == "7"
    assert rows["unlabelled scans"] == "2; median spacing 5 × 1 × 1 mm, median size 25 × 41 × 50 voxels"


def test_unknown_data_are_called_unknown() -> None:
    assert dict(data_table("", {}, None).rows) == {"data set": "unknown", "channels": "unknown", "labels": "unknown"}
