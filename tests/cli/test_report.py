from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.report import main
from tests.comparison.folders_for_tests import numbered, write_run
from tests.reports.study_for_tests import Study, make_study

BASE = [0.5, 0.6, 0.7, 0.55, 0.65]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path / "study", hostile=False)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    write_run(tmp_path / "results", "SupervisedTrainer", numbered(BASE))
    return tmp_path / "results"


def test_the_command_says_the_verdict_and_what_to_open(study: Study, tmp_path: Path, capsys) -> None:
    assert main([str(study.baseline), str(study.method), "-o", str(tmp_path / "out"), "-cases", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FixMatchTrainer helped: +")
    assert lines[1].startswith(f"report: {tmp_path / 'out' / 'index.html'} (")
    assert lines[2] == f"open:   {(tmp_path / 'out' / 'index.html').as_uri()}"


def test_json_holds_page_and_comparison(study: Study, tmp_path: Path, capsys) -> None:
    words = [str(study.root), "-o", str(tmp_path / "out"), "-cases", "1", "-metric", "IoU", "--single_file", "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["index"] == str(tmp_path / "out" / "index.html")
    assert len(printed["cases"]) == 2
    assert printed["comparison"]["metric"] == "IoU"
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["index.html"]


def test_a_data_set_with_one_run_has_a_report(results: Path, tmp_path: Path, capsys) -> None:
    assert main(["-d", "1", "-o", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "This report is on one method, SupervisedTrainer." in text
    assert "nnssl_train 1 2d 0 -tr SupervisedTrainer" in text


def test_the_runs_of_a_data_set_are_chosen_by_plans(results: Path, tmp_path: Path, capsys) -> None:
    write_run(results, "CCETrainer", numbered([value + 0.1 for value in BASE]))
    write_run(results, "CCETrainer", numbered(BASE), plans="other")
    out = tmp_path / "out"
    assert main(["-d", "1", "-o", str(out)]) == 2
    assert not out.exists()
    assert main(["-d", "1", "-p", "nnUNetPlans", "-c", "2d", "-f", "0", "-o", str(out)]) == 0
    assert "CCETrainer helped: +10.0 Dice points" in capsys.readouterr().out
