from __future__ import annotations

import json
import math
import shutil

import pytest

from nnssl.cli.evaluate import main, make_parser
from tests.evaluation.folders_for_tests import LABELS, label_array, write_folders, write_labels


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_two_folders_are_enough(tmp_path, capsys):
    references, predictions = write_folders(tmp_path)
    assert run(references, predictions) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("structure ")
    assert [line.split()[0] for line in lines[2:4]] == ["core", "rim"]
    assert lines[-1] == f"written: {predictions / 'summary.json'}"
    summary = json.loads((predictions / "summary.json").read_text())
    assert summary["conventions"]["metrics"] == "standard"


def test_json_is_strict_and_alone_on_standard_output(tmp_path, capsys):
    references, predictions = write_folders(tmp_path, labels={**LABELS, "absent": 3})
    assert run(references, predictions, "--json", "-protocol", "paper") == 0

    def refuse(constant):
        raise AssertionError(constant)

    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert printed["summary_file"] == str(predictions / "summary.json")
    assert printed["mean"]["3"]["Dice"] is None
    assert printed["mean"]["1"]["hd95_vox_pooled"] > 0
    written = json.loads((predictions / "summary.json").read_text())
    assert math.isnan(written["mean"]["3"]["Dice"])
    assert printed["mean"]["1"] == written["mean"]["1"]


def test_placement_can_be_ignored(tmp_path, capsys):
    references, predictions = write_folders(tmp_path)
    write_labels(references / "case_0.nii.gz", label_array(0), origin=(9.0, 0.0, 0.0))
    assert run(references, predictions) == 3
    assert "--ignore_placement" in capsys.readouterr().err
    assert run(references, predictions, "--ignore_placement") == 0


def test_every_option_reaches_the_evaluation(tmp_path, capsys):
    references, predictions = write_folders(tmp_path)
    dataset_json = shutil.move(predictions / "dataset.json", tmp_path / "dataset.json")
    plans = tmp_path / "plans.json"
    plans.write_text("{}")
    (predictions / "case_0.nii.gz").unlink()
    output = tmp_path / "scores.json"
    reference = label_array(1)
    reference[0] = 9
    write_labels(references / "case_1.nii.gz", reference)
    options = ["-djfile", dataset_json, "-pfile", plans, "-o", output, "-np", 1, "--chill", "-nsd_tolerance_mm", 3.5]
    assert run(references, predictions, *options, "-l", 2, 1, "-il", 9) == 0
    summary = json.loads(output.read_text())
    assert summary["structures"] == {"2": "rim", "1": "core"}
    assert summary["conventions"]["nsd_tolerance_mm"] == 3.5
    assert summary["without_prediction"] == ["case_0"]
    metrics = summary["metric_per_case"][0]["metrics"]["1"]
    assert sum(metrics[key] for key in ("TP", "FP", "FN", "TN")) == (reference != 9).sum()
    assert "references without a prediction, left out (1): case_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("no json", 2, ("nothing says which labels", "-djfile", "-l 1 2 3")),
        ("missing prediction", 3, ("1 of 4 references have no prediction", "--chill")),
        ("geometry", 3, ("case_1", "spacing", "(3, 1.2, 0.8)", "(1, 1, 1)", "tolerance")),
        ("unwritable", 4, ("cannot be written", "is a file")),
    ],
)
def test_errors_have_their_exit_code_and_say_what_to_do(tmp_path, capsys, fault, code, words):
    references, predictions = write_folders(tmp_path)
    options = []
    if fault == "no json":
        (predictions / "dataset.json").unlink()
    elif fault == "missing prediction":
        (predictions / "case_1.nii.gz").unlink()
    elif fault == "geometry":
        write_labels(predictions / "case_1.nii.gz", label_array(1), spacing=(1, 1, 1))
    else:
        (tmp_path / "file").write_text("")
        options = ["-o", tmp_path / "file" / "summary.json"]
    assert run(references, predictions, *options) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(word in captured.err for word in words)
    assert run(references, predictions, *options, "--json") == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert not (predictions / "summary.json").exists()


def test_the_validation_of_a_run_is_scored_again(tmp_path, monkeypatch, capsys):
    references, predictions = write_folders(tmp_path)
    for variable in ("nnUNet_results", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    data = tmp_path / "nnUNet_preprocessed" / "Dataset001_A"
    data.mkdir()
    shutil.move(references, data / "gt_segmentations")
    for tag in ("", "@seed1"):
        fold = tmp_path / "nnUNet_results" / "Dataset001_A" / f"T__P__2d{tag}" / "fold_0"
        fold.mkdir(parents=True)
        (fold / "checkpoint_final.pth").touch()
        shutil.copytree(predictions, fold / "validation")
    assert run("-d", 1, "-tr", "T") == 2
    assert "2 validated runs fit: choose one" in capsys.readouterr().err
    assert run("-d", 1, "-tag", "seed1", "-metrics", "paper", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["summary_file"] == str(fold / "validation" / "summary.json")
    assert "hd95_vox_pooled" in result["foreground_mean"]
    assert run("-d", 2) == 2
    shutil.rmtree(data)
    assert run("-d", 1, "-tag", "seed1") == 3


@pytest.mark.parametrize("arguments", [(), ("labels",), ("labels", "predictions", "-d", "1")])
def test_folders_or_the_names_of_a_run(arguments, capsys):
    assert run(*arguments) == 2
    assert "give the folders of references and predictions, or the names of a run" in capsys.readouterr().err


def test_unknown_options_are_usage_errors(capsys):
    with pytest.raises(SystemExit) as caught:
        run("a", "b", "-protocol", "voxel")
    assert caught.value.code == 2
    assert "paper" in capsys.readouterr().err


def test_help_names_every_option():
    text = make_parser().format_help()
    for option in (
        "-djfile",
        "-pfile",
        "-o",
        "-np",
        "--chill",
        "-l",
        "-il",
        "-metrics",
        "-tag",
        "-nsd_tolerance_mm",
        "--json",
    ):
        assert f"  {option}" in text
