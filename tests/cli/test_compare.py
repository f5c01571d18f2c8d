from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from nnssl.cli.compare import main, make_parser
from tests.comparison.folders_for_tests import numbered, write_run, write_summary

BASE = np.linspace(0.5, 0.8, 8)
GAIN = np.linspace(0.05, 0.12, 8)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("nnUNet_results", raising=False)
    for name, shift in (("A", 0), ("B", GAIN), ("C", -GAIN)):
        write_summary(tmp_path / name, numbered(BASE + shift))
    return tmp_path


def test_table_and_sentences(capsys) -> None:
    assert main(["A", "B", "C", "-baseline", "A"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["method", "A", "B", "C"]
    assert lines[5] == "B helped: +8.5 Dice points [6.5, 10.5] on 8 patients (exploratory)"
    assert lines[6].startswith("C hurt: ")
    assert captured.err == ""


def test_json_has_the_named_keys_in_the_order_given(capsys) -> None:
    assert main(["C", "A", "B", "-baseline", "A", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["baseline"] == "A"
    assert [(method["name"], method["verdict"]) for method in printed["methods"]] == [("C", "hurt"), ("B", "helped")]
    method = printed["methods"][1]
    assert method["mean_difference"] == pytest.approx(GAIN.mean())
    assert method["ci_low"] < method["mean_difference"] < method["ci_high"]
    assert (method["p_holm"], method["patients"], method["exploratory"]) == (pytest.approx(2 / 2**7), 8, True)


def test_every_option_reaches_the_comparison(folders, capsys) -> None:
    (folders / "results").mkdir()
    write_run(folders / "results", "SupervisedTrainer", numbered(BASE), plans="P")
    write_run(folders / "results", "CCETrainer", numbered(BASE + GAIN), plans="P")
    write_run(folders / "results", "CCETrainer", numbered(BASE), plans="Q")
    options = ["-d", "1", "-p", "P", "-c", "2d", "-f", "0", "-metric", "IoU", "-all", "B", "-o", "out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folders / "results"))
        assert main([*options, "-baseline", "SupervisedTrainer"]) == 0
    text = capsys.readouterr().out
    assert "mean Jaccard" in text
    assert "closes 100% [100%, 100%] of the gap to B" in text
    assert text.splitlines()[-1] == "written: out"
    assert (folders / "out" / "comparison.png").stat().st_size > 10_000


def write_prediction(folder, cases, model) -> None:
    """Write a folder of scored predictions with the record that nnssl_predict leaves."""
    write_summary(folder, cases)
    record = {"list_of_lists_or_source_folder": "scans", "nnssl_semi": {"model": model, "folds": ["0"]}}
    (folder / "predict_from_raw_data_args.json").write_text(json.dumps(record))


def test_predictions_of_the_supervised_trainer_are_the_baseline(folders, capsys) -> None:
    model = "/results/Dataset001_A/{}__nnUNetPlans__3d_fullres@seed1"
    write_prediction(folders / "p1", numbered(BASE + GAIN), model.format("MeanTeacherTrainer"))
    write_prediction(folders / "p0", numbered(BASE), model.format("SupervisedTrainer"))
    for places in (["p1", "p0"], ["p1/summary.json", "p0/summary.json"], ["Teacher=p1", "Base=p0"]):
        assert main([*places, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["baseline"] == ("Base" if "=" in places[1] else "p0")
    write_prediction(folders / "p2", numbered(BASE), model.format("SupervisedTrainer"))
    assert main(["p1", "p0", "p2"]) == 2
    assert "2 of these are runs of SupervisedTrainer" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"nnssl_semi": {"model": null}}', '{"nnssl_semi": []}'])
def test_a_record_that_names_no_model_says_nothing(content: str, folders, capsys) -> None:
    (folders / "A" / "predict_from_raw_data_args.json").write_text(content)
    assert main(["A", "B"]) == 2
    assert "choose the baseline" in capsys.readouterr().err


def test_a_pipe_gets_the_same_text(folders, capsys) -> None:
    words = ["A", "B", "-baseline", "A"]
    code = f"import sys; from nnssl.cli.compare import main; sys.exit(main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert main(words) == 0
    assert done.stdout.decode("ascii") == capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 2, "runs or folders to compare, or a data set"),
        ("A B", 2, "choose the baseline"),
        ("A -baseline A", 2, "no method beside the baseline"),
        ("A", 2, "add the place to compare with: nnssl_compare A B -baseline A"),
        ("A A", 2, "the same run is named twice"),
        ("A A -baseline A", 2, "name each run or folder once"),
        ("A B A -baseline A", 2, "the same run is named twice"),
        ("X=B X=B A -baseline A", 2, "the same run is named twice"),
        ("A B -baseline gone", 3, "no such run"),
        ("A B gone -baseline A", 3, "no such run"),
        ("A empty -baseline A", 3, "no summary.json"),
        ("A other -baseline A", 3, "no case in common"),
        ("A B -baseline A -metric nsd", 3, "no nsd"),
        ("A B -baseline A -metric dice", 2, "unknown metric"),
        ("A B -baseline A -f 0", 2, "choose among the runs"),
        ("A B -d 1", 2, "runs or folders to compare, or a data set"),
        ("-d 1", 4, "nnUNet_results is not set"),
        ("A B -baseline A -o A/summary.json", 4, "output folder"),
        ("A B -baseline A -all gone", 3, "no such run"),
    ],
)
def test_errors_have_their_exit_code(words: str, code: int, said: str, folders, capsys) -> None:
    (folders / "empty").mkdir()
    write_summary(folders / "other", {"stranger": 0.5})
    before = sorted(folders.rglob("*"))
    assert main(words.split()) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert main([*words.split(), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["exit_code"] == code
    assert sorted(folders.rglob("*")) == before


def test_a_method_is_chosen(folders, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(folders))
    for trainer, gain in (("SupervisedTrainer", 0.0), ("FixMatchTrainer", 0.3)):
        write_run(folders, trainer, numbered(BASE * 0.5 + gain))
    assert main(["-d", "1", "--choose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["SupervisedTrainer", "32.5", "±", "1.9"]
    assert lines[2].split() == ["FixMatchTrainer", "62.5", "±", "1.9", "good", "enough"]
    assert lines[3] == "chosen: FixMatchTrainer, the best; the limit is 60.6"
    assert lines[4].startswith("next: nnssl_predict -i IMAGES -o MASKS -m ")
    assert main(["-d", "1", "--choose", "--json", "-o", "out"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["chosen"] == "FixMatchTrainer"
    assert json.loads((folders / "out" / "choice.json").read_text()) == printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("A B --choose", "a method is chosen among runs"),
        ("-d 1 --choose -baseline A", "a method is chosen without -baseline"),
        ("-d 1 --choose -all A", "a method is chosen without -all"),
        ("--choose", "name either runs or a data set"),
    ],
)
def test_a_choice_needs_runs_and_takes_no_baseline(words: str, said: str, folders, capsys) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_help_names_every_option() -> None:
    text = make_parser().format_help()
    for option in ("PLACE", "-baseline", "-d", "-p", "-c", "-f", "-metric", "-all", "-o", "--json"):
        assert option in text
