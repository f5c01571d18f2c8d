from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nnssl.errors import DataError
from nnssl.reports.data_sheet import data_sheet, measures_of, sheet_after_planning

SCAN = {"kind": "labelled", "spacing_mm": [3.0, 1.0], "shape": [10, 40], "intensity": [{"mean": 5.0, "std": 2.0}]}


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pre" / "Dataset003_A"
    folder.mkdir(parents=True)
    return folder


def test_each_axis_and_channel_is_a_measure() -> None:
    assert measures_of({"a": SCAN}) == {
        "spacing of axis 0, mm": {"a": 3.0},
        "size of axis 0, mm": {"a": 30.0},
        "spacing of axis 1, mm": {"a": 1.0},
        "size of axis 1, mm": {"a": 40.0},
        "mean intensity, channel 0": {"a": 5.0},
        "standard deviation, channel 0": {"a": 2.0},
    }


def test_the_sheet_of_a_label_budget(preprocessed: Path) -> None:
    scans = {"a": SCAN, "b": {**SCAN, "kind": "unlabelled"}, "c$x": {**SCAN, "kind": "test"}}
    check = {"scans": scans, "warnings": ["spacing of $b$ differs " * 20]}
    (preprocessed / "data_check@lab7.json").write_text(json.dumps(check))
    sheet = data_sheet(3, "7")
    assert sheet.file == Path("Dataset003_A_look.png")
    assert Image.open(sheet.file).width > 1000
    with pytest.raises(DataError, match="missing"):
        data_sheet(3)


def test_a_check_without_scans_is_an_error(preprocessed: Path) -> None:
    (preprocessed / "data_check.json").write_text(json.dumps({"scans": {}, "warnings": []}))
    with pytest.raises(DataError, match="no scan"):
        data_sheet("Dataset003_A")
    assert not Path("Dataset003_A_look.png").exists()


def test_the_sheet_stands_beside_the_plans(preprocessed: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = preprocessed / "nnUNetPlans@lab7.json"
    assert sheet_after_planning(plans) is None
    assert "warning: no data sheet" in caplog.text
    (preprocessed / "data_check@lab7.json").write_text(json.dumps({"scans": {"a": SCAN}, "warnings": []}))
    assert sheet_after_planning(plans) == preprocessed / "data_check@lab7.png"
    assert Image.open(preprocessed / "data_check@lab7.png").width > 1000
