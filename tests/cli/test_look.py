from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.look import main
from tests.reports.study_for_tests import make_study
from tests.reports.test_data_sheet import SCAN


def test_a_folder_of_scans_and_masks(tmp_path: Path, capsys) -> None:
    study = make_study(tmp_path / "study", cases=3, hostile=False)
    words = [str(study.images), str(study.labels), "-n", "2", "-o", str(tmp_path / "a.png")]
    assert main(words) == 0
    expected = f"sheet: {tmp_path / 'a.png'} (2 scans; 1 more with a larger -n); it shows patient data\n"
    assert capsys.readouterr().out == expected
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"file": str(tmp_path / "a.png"), "cases": ["case_00", "case_01"], "left_out": ["case_02"]}


def test_the_sheet_of_a_data_set(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset003_A").mkdir()
    check = {"scans": {"a": SCAN}, "warnings": []}
    (tmp_path / "Dataset003_A" / "data_check@lab2.json").write_text(json.dumps(check))
    assert main(["-d", "3", "-labelled", "2", "-o", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_the_views_of_a_data_set(tmp_path: Path, make_tiny, capsys) -> None:
    folder = make_tiny(2)
    assert main(["-d", folder.name, "--views", "-n", "1", "-o", str(tmp_path / "views.png")]) == 0
    assert capsys.readouterr().out == f"sheet: {tmp_path / 'views.png'} (1 patches); it shows patient data\n"
    assert (tmp_path / "views.png").stat().st_size > 2000


def test_options_of_views_need_views_of_a_data_set(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--views"]) == 2
    assert "nnssl_look -d ID --views" in capsys.readouterr().err
    assert main([str(tmp_path), "-tr", "FixMatchTrainer"]) == 2
    assert "a sheet of scans without -tr" in capsys.readouterr().err
