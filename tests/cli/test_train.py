from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from nnssl.cli.methods import main as methods
from nnssl.cli.train import main
from nnssl.training.checkpoints import load


@pytest.fixture
def dataset(make_tiny, monkeypatch) -> Path:
    """Return a hand-made preprocessed data set; it has no manifests, so that check is left out."""
    from nnssl.planning import preprocessing
    from nnssl_trainers.frame.run_loop import Run

    monkeypatch.setattr(preprocessing, "check_preprocessed", lambda *_: None)
    monkeypatch.setattr(Run, "_plot", lambda _: None)
    return make_tiny()


def train(dataset: Path, *extra: str) -> int:
    return main([dataset.name, "3d_fullres", "0", "-device", "cpu", *extra])


def results(dataset: Path, trainer: str = "MeanTeacherTrainer") -> Path:
    return dataset.parents[1] / "nnUNet_results" / dataset.name / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_0"


def test_a_run_leaves_what_users_expect(dataset, capsys) -> None:
    assert train(dataset, "-num_iterations", "3", "-seed", "9", "--set", "ema_decay=0.5", "rampup_share=0") == 0
    folder = results(dataset)
    files = {file.name for file in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.jsonl", "progress.csv", "debug.json"} <= files
    assert not {"checkpoint_latest.pth", "checkpoint_previous.pth"} & files
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json"} <= {f.name for f in folder.parent.iterdir()}
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    row = json.loads((folder / "progress.jsonl").read_text())
    with (folder / "progress.csv").open() as file:
        assert {key: float(value) for key, value in next(csv.DictReader(file)).items()} == pytest.approx(
            {key: float(value) for key, value in row.items()}
        )
    run = load(folder / "checkpoint_final.pth")["nnssl_semi"]["run"]
    assert run == {
        "num_iterations": 3, "seed": 9, "labelled": None, "bf16": False,
        "config": {"ema_decay": 0.5, "rampup_share": 0.0},
    }  # fmt: skip
    assert json.loads((folder.parent / "plans.json").read_text())["nnssl_semi"]["run"] == run
    assert "nnssl_predict" in capsys.readouterr().out


def test_continue_validate_and_start_anew(dataset, capsys) -> None:
    assert train(dataset, "-num_iterations", "2", "--no_val") == 0
    weights = (results(dataset) / "checkpoint_final.pth").read_bytes()
    assert train(dataset, "--c", "--no_val") == 0
    assert (results(dataset) / "checkpoint_final.pth").read_bytes() == weights
    assert train(dataset, "--val", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["summary"].endswith("summary.json")
    assert train(dataset, "--c", "-num_iterations", "4") == 2
    assert "stored 2, asked 4" in capsys.readouterr().err
    assert train(dataset, "-num_iterations", "1", "--no_val") == 0
    aside = results(dataset).with_name("previous_fold_0") / "checkpoint_final.pth"
    assert aside.read_bytes() == weights


def test_best_weights_probabilities_and_no_checkpoints(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "2", "--npz", "--val_best") == 0
    assert len(list((results(dataset, "SupervisedTrainer") / "validation").glob("*.npz"))) == 2
    assert train(dataset, "-num_iterations", "1", "--disable_checkpointing", "--no_val") == 0
    assert not list(results(dataset).glob("*.pth"))


def test_pretrained_weights_are_where_training_starts(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "1", "--no_val", "-seed", "1") == 0
    file = results(dataset, "SupervisedTrainer") / "checkpoint_final.pth"
    assert train(dataset, "-num_iterations", "1", "--no_val", "-pretrained_weights", str(file)) == 0


def test_fold_all_trains_on_every_labelled_case(dataset) -> None:
    assert main([dataset.name, "3d_fullres", "all", "-device", "cpu", "-num_iterations", "1", "--no_val"]) == 0
    assert (results(dataset).with_name("fold_all") / "checkpoint_final.pth").is_file()


def test_methods_as_json_and_text(capsys) -> None:
    assert methods(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"SupervisedTrainer", "MeanTeacherTrainer"} <= {entry["class"] for entry in listed}
    assert all(list(entry) == ["name", "class", "paper", "needs"] for entry in listed)
    assert methods(["--verbose"]) == 0
    text = capsys.readouterr().out
    assert "--set ema_decay=0.99 (α)" in text
    assert "--set weights=copy_paste: whom eq. 17 gives weight 1 [copy_paste, literal]" in text
    assert "--set copy_paste=on: mix patches; off: labelled and unlabelled patches stay apart [on, off]" in text


def test_the_plans_name_is_given_without_its_tag(dataset, capsys) -> None:
    assert train(dataset, "-p", "nnUNetPlans@lab2") == 2
    assert "-p nnUNetPlans -labelled N" in capsys.readouterr().err


def test_leftovers_of_a_killed_session_go(dataset) -> None:
    leftover = results(dataset) / ".checkpoint_latest.pth.x1.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    assert train(dataset, "-num_iterations", "1", "--no_val") == 0
    assert not leftover.exists()
