from __future__ import annotations

import csv

from nnssl.cli.pseudo_quality import main
from tests.inference.model_for_tests import write_model, write_scans


def test_the_command_counts_decisions_and_says_what_was_compared(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    model, scans = write_model(tmp_path, folds=(0, 1)), write_scans(tmp_path / "scans", count=2)
    words = ["-m", model.name, "-i", str(scans), "-o", str(tmp_path / "out"), "-device", "cpu", "--disable_tta"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 scans: ")
    assert lines[1].startswith("compared: runs (")
    assert lines[2].startswith("calibration: 0 held-out labelled case(s)")
    assert str(tmp_path / "out" / "scores.csv") in lines[-1]
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    order = [("drop", "look", "accept").index(row["decision"]) for row in table]
    assert order == sorted(order)
    assert {row["case"] for row in table} == {"case_0", "case_1"}
    assert main(words) == 2
    assert "--overwrite replaces results" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
