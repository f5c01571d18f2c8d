from __future__ import annotations

import csv
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnssl.cli.methods import main as methods
from nnssl.cli.train import main
from nnssl.registry import DEFAULT_METHOD
from nnssl.training.checkpoints import load, save
from nnssl.training.record import RunRecord
from nnssl.training.runs import runs
from nnssl.training.settings import RunSettings, automatic_tag


@pytest.fixture
def dataset(make_tiny, monkeypatch) -> Path:
    """Return a hand-made preprocessed data set; it has no manifests, so that check is left out."""
    from nnssl.planning import preprocessing
    from nnssl_trainers.frame.run_loop import RunLoop

    monkeypatch.setattr(preprocessing, "check_preprocessed", lambda *_: None)
    monkeypatch.setattr(RunLoop, "_plot", lambda _: None)
    return make_tiny()


def train(dataset: Path, *extra: str) -> int:
    return main([dataset.name, "3d_fullres", "0", "-device", "cpu", *extra])


def results(dataset: Path, trainer: str = DEFAULT_METHOD, tag: str = "") -> Path:
    model = f"{trainer}__nnUNetPlans__3d_fullres" + (f"@{tag}" if tag else "")
    return dataset.parents[1] / "nnUNet_results" / dataset.name / model / "fold_0"


def test_a_run_leaves_what_users_expect(dataset, capsys) -> None:
    assert train(dataset, "-num_iterations", "3", "-seed", "9", "--set", "ema_decay=0.5", "rampup_share=0") == 0
    folder = results(dataset, tag="seed9,iterations3,ema_decay=0.5,rampup_share=0")
    files = {file.name for file in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "progress.jsonl", "progress.csv"} <= files
    assert {"debug.json", "run.json", "postprocessing.json"} <= files
    assert "checkpoint_latest.pth" in files  # so that the run can be made longer
    assert "checkpoint_previous.pth" not in files
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
        "config": {"ema_decay": 0.5, "rampup_share": 0.0}, "tag": "seed9,iterations3,ema_decay=0.5,rampup_share=0",
        "start_from": "", "pseudo_labels": "", "setting": "",
    }  # fmt: skip
    assert json.loads((folder.parent / "plans.json").read_text())["nnssl_semi"]["run"] == run
    assert "nnssl_predict" in capsys.readouterr().out


def test_continue_validate_and_refuse_to_replace(dataset, capsys) -> None:
    assert train(dataset, "-num_iterations", "2", "--no_val") == 0
    file = results(dataset, tag="iterations2") / "checkpoint_final.pth"
    weights = file.read_bytes()
    assert train(dataset, "--c", "--no_val") == 0
    assert file.read_bytes() == weights
    assert train(dataset, "--val", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["summary"].endswith("summary.json")
    assert result["settings"]["num_iterations"] == 2
    assert result["record"]["scores"]["dice"] == pytest.approx(runs(dataset.name)[0].validation_dice)
    assert result["record"]["scores"]["postprocessed"]["dice"] == runs(dataset.name)[0].postprocessed_dice
    assert result["record"]["sessions"][0]["versions"]["nnssl"]
    assert train(dataset, "--c", "-num_iterations", "1") == 2
    assert "stored 2, asked 1" in capsys.readouterr().err
    assert train(dataset, "-num_iterations", "2", "--no_val") == 2
    message = capsys.readouterr().err
    assert "a run of this name exists already" in message
    assert "--overwrite replaces it; -tag NAME keeps both" in message
    assert "--c continues it" not in message  # it is done
    assert file.read_bytes() == weights
    assert train(dataset, "-num_iterations", "2", "--no_val", "--overwrite", "--c") == 2
    assert train(dataset, "-num_iterations", "2", "--no_val", "--overwrite") == 0
    assert [folder.name for folder in file.parents[1].glob("*fold*")] == ["fold_0"]


@pytest.mark.parametrize("trainer", ["SupervisedTrainer", "DSMTTrainer"])
def test_a_finished_run_can_be_made_longer(trainer: str, dataset, monkeypatch, capsys) -> None:
    monkeypatch.setattr("nnssl.training.settings.ITERATIONS_PER_EPOCH", 2)
    short = ("-tr", trainer, "--no_val", "--set", "network=plan", *(["student2=none"] if trainer[0] == "D" else []))
    assert train(dataset, *short, "-num_iterations", "3", "-tag", "grows") == 0
    assert train(dataset, *short, "-num_iterations", "7", "-tag", "grows", "--c") == 0
    folder = results(dataset, trainer, "grows")
    record = RunRecord.read(folder)
    assert (record.iteration, record.settings.num_iterations, record.state) == (7, 7, "done")
    assert [session.first_iteration for session in record.sessions] == [0, 3]
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [2, 3, 4, 6, 7]
    rates = [row["learning_rate"] for row in rows[-2:]]
    assert rates == sorted(rates, reverse=True)  # the schedule of the new length goes down to its end
    final = load(folder / "checkpoint_final.pth")
    assert final["nnssl_semi"]["iteration"] == 7
    assert {len(values) for values in final["logging"].values()} == {4}  # epochs of 2 iterations
    assert "logging issue" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--c", "--val"])
@pytest.mark.parametrize("changed", ["plans", "labelled cases", "validation cases"])
def test_a_run_does_not_go_on_with_other_plans_or_cases(changed: str, option: str, dataset, capsys) -> None:
    assert train(dataset, "-num_iterations", "2", "-tag", "a", "--no_val") == 0
    folder = results(dataset, tag="a")
    before = {file: file.read_bytes() for file in folder.parent.rglob("*") if file.suffix in (".json", ".pth")}
    plans, splits = dataset / "nnUNetPlans.json", dataset / "splits_final.json"
    content, (split, *_) = json.loads(plans.read_text()), json.loads(splits.read_text())
    if changed == "plans":
        content["configurations"]["3d_fullres"]["batch_size"] += 1
        plans.write_text(json.dumps(content))
    else:
        split["train" if changed == "labelled cases" else "val"].pop()
        splits.write_text(json.dumps([split]))
    assert train(dataset, "-tag", "a", option, *(["-num_iterations", "3"] if option == "--c" else [])) == 3
    message = capsys.readouterr().err
    assert f"this run began with other {changed}\n" in message
    assert "-tag NAME" in message
    assert {file: file.read_bytes() for file in before} == before


def test_a_stage_is_taken_over_without_a_complaint_of_nnunets_log(dataset, monkeypatch, capsys, caplog) -> None:
    monkeypatch.setattr("nnssl.training.settings.ITERATIONS_PER_EPOCH", 2)
    with caplog.at_level(logging.INFO):
        for trainer in ("MeanTeacherTrainer", "FixMatchTrainer"):
            assert train(dataset, "-tr", trainer, "-num_iterations", "4", "--no_val", "--set", "ready_dice=0") == 0
    assert "the supervised stage of 2 iterations is taken from" in caplog.text
    assert "logging issue" not in capsys.readouterr().out


def test_an_overwrite_that_fails_keeps_the_earlier_run(dataset, monkeypatch, capsys) -> None:
    from nnssl_trainers.frame.run_loop import RunLoop

    assert train(dataset, "-num_iterations", "2", "--no_val") == 0
    file = results(dataset, tag="iterations2") / "checkpoint_final.pth"
    weights = file.read_bytes()

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(RunLoop, "run_training", fail)
    assert train(dataset, "-num_iterations", "2", "--no_val", "--overwrite") == 5
    assert file.read_bytes() == weights
    assert json.loads((file.parent / "run.json").read_text())["state"] == "done"


def test_a_run_that_a_killed_overwrite_put_aside_is_not_lost(dataset, capsys) -> None:
    short = ("-tr", "SupervisedTrainer", "-num_iterations", "1", "--no_val")
    assert train(dataset, *short) == 0
    folder = results(dataset, "SupervisedTrainer", "iterations1")
    weights = (folder / "checkpoint_final.pth").read_bytes()
    folder.rename(folder.with_name(".replaced_fold_0"))
    folder.mkdir()
    capsys.readouterr()
    assert train(dataset, *short) == 2
    assert "a run of this name exists already" in capsys.readouterr().err
    assert (folder / "checkpoint_final.pth").read_bytes() == weights
    assert [place.name for place in folder.parent.glob("*fold*")] == ["fold_0"]


def test_best_weights_probabilities_and_no_checkpoints(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "2", "--npz", "--val_best") == 0
    folder = results(dataset, "SupervisedTrainer", "iterations2")
    assert len(list((folder / "validation").glob("*.npz"))) == 2
    assert train(dataset, "-num_iterations", "1", "--disable_checkpointing", "--no_val") == 0
    assert not list(results(dataset, tag="iterations1").glob("*.pth"))


def test_a_run_has_a_record(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "2", "-seed", "3", "-network", "vnet") == 0
    folder = results(dataset, "SupervisedTrainer", "seed3,iterations2,network=vnet")
    record = RunRecord.read(folder)
    assert record is not None
    assert (record.state, record.iteration, record.fold) == ("done", 2, "0")
    assert record.settings.config == {"network": "vnet"}
    assert record.scores is not None
    assert set(record.scores.dice_by_label) == {"1", "2"}
    (session,) = record.sessions
    assert session.command == (
        f"nnssl_train {dataset.name} 3d_fullres 0 -tr SupervisedTrainer -num_iterations 2 -seed 3 --set network=vnet"
    )
    assert record.seconds_per_iteration is not None
    assert session.peak_memory_bytes > 0
    assert all(vars(record.data).values())
    assert train(dataset, "-tr", "SupervisedTrainer", "--val", "--npz") == 0
    again, later = RunRecord.read(folder).sessions
    assert again == session
    assert later.command == f"{session.command} --val --npz"


def test_settings_and_seeds_stand_side_by_side(dataset, capsys) -> None:
    short = ("-tr", "SupervisedTrainer", "-num_iterations", "1", "--no_val")
    variants = [("--set", f"momentum={value}") for value in ("0.5", "0.7", "0.9")] + [("-seed", "1"), ("-seed", "2")]
    for extra in variants:
        assert train(dataset, *short, *extra) == 0
    assert train(dataset, *short, "-tag", "mine") == 0
    tags = {run.tag for run in runs(dataset.name)}
    named = {f"iterations1,momentum={value}" for value in ("0.5", "0.7", "0.9")}
    assert tags == named | {"seed1,iterations1", "seed2,iterations1", "mine"}
    weights = {(run.folder / "checkpoint_final.pth").read_bytes() for run in runs(dataset.name)}
    assert len(weights) == 6
    capsys.readouterr()
    assert train(dataset, "-tr", "SupervisedTrainer", "--c", "--no_val") == 2
    assert "6 runs fit: choose one" in capsys.readouterr().err
    assert train(dataset, *short, "-seed", "2", "--c") == 0
    assert train(dataset, "-tr", "SupervisedTrainer", "--c", "--no_val", "-tag", "mine") == 0
    assert train(dataset, *short, "-tag", "a/b") == 2


KILLED = """
import os, signal, sys
import nnssl.planning.preprocessing, nnssl.training.settings
from nnssl_trainers.frame.run_loop import RunLoop

nnssl.planning.preprocessing.check_preprocessed = lambda *_: None
nnssl.training.settings.ITERATIONS_PER_EPOCH = 1
finish = RunLoop._finish_epoch

def finish_and_die(self, *arguments):
    finish(self, *arguments)
    if self.iteration == 2:
        os.kill(os.getpid(), signal.SIGKILL)

RunLoop._finish_epoch = finish_and_die
from nnssl.cli.train import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_variants_are_killed_listed_and_continued_by_tag(dataset, monkeypatch) -> None:
    monkeypatch.setattr("nnssl.training.settings.ITERATIONS_PER_EPOCH", 1)
    short = [dataset.name, "3d_fullres", "0", "-device", "cpu", "-tr", "SupervisedTrainer", "--no_val"]
    tags = ["iterations4,momentum=0.5", "iterations4,momentum=0.7", "seed1,iterations4"]
    variants = [("--set", "momentum=0.5"), ("--set", "momentum=0.7"), ("-seed", "1")]
    for extra in variants:
        words = [sys.executable, "-c", KILLED, *short, "-num_iterations", "4", *extra]
        assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert {(run.tag, run.progress) for run in runs(dataset.name)} == {(tag, "stopped at 2 of 4") for tag in tags}
    for tag in tags:
        assert main([*short, "--c", "-tag", tag]) == 0
    assert {(run.tag, run.progress) for run in runs(dataset.name)} == {(tag, "done") for tag in tags}
    assert all(len(RunRecord.read(run.folder).sessions) == 2 for run in runs(dataset.name))


def test_runs_of_earlier_versions_go_on(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "1", "--no_val", "-tag", "default") == 0
    folder = results(dataset, "SupervisedTrainer")
    (folder / "run.json").unlink()
    final = load(folder / "checkpoint_final.pth")
    del final["nnssl_semi"]["run"]["tag"]
    save(final, folder / "checkpoint_final.pth")
    assert train(dataset, "-tr", "SupervisedTrainer", "--val") == 0
    (run,) = runs(dataset.name)
    assert (run.tag, run.state) == ("", "done")
    assert run.validation_dice is not None


def test_pretrained_weights_are_where_training_starts(dataset) -> None:
    assert train(dataset, "-tr", "SupervisedTrainer", "-num_iterations", "1", "--no_val", "-seed", "1") == 0
    file = results(dataset, "SupervisedTrainer", "seed1,iterations1") / "checkpoint_final.pth"
    assert train(dataset, "-num_iterations", "1", "--no_val", "-pretrained_weights", str(file)) == 0
    assert (results(dataset, tag="iterations1,pretrained") / "checkpoint_final.pth").is_file()


def test_fold_all_trains_on_every_labelled_case(dataset) -> None:
    assert main([dataset.name, "3d_fullres", "all", "-device", "cpu", "-num_iterations", "1", "--no_val"]) == 0
    assert (results(dataset, tag="iterations1").with_name("fold_all") / "checkpoint_final.pth").is_file()


def test_methods_as_json_and_text(capsys) -> None:
    assert methods(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"SupervisedTrainer", "MeanTeacherTrainer"} <= {entry["class"] for entry in listed}
    assert all(list(entry)[:4] == ["name", "class", "paper", "needs"] for entry in listed)
    assert methods(["--verbose"]) == 0
    text = capsys.readouterr().out
    assert "--set ema_decay=0.99 (α)" in text
    assert "--set learning_rate=auto: first learning rate" in text
    assert "--set preset=default: named group of settings; a setting that is given itself wins [default, paper]" in text
    assert "--set copy_paste=on: mix patches; off: labelled and unlabelled patches stay apart [on, off]" in text


def test_the_plans_name_is_given_without_its_tag(dataset, capsys) -> None:
    assert train(dataset, "-p", "nnUNetPlans@lab2") == 2
    assert "-p nnUNetPlans -labelled N" in capsys.readouterr().err


def test_leftovers_of_a_killed_session_go(dataset) -> None:
    leftover = results(dataset, tag="iterations1") / ".checkpoint_latest.pth.x1.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half")
    assert train(dataset, "-num_iterations", "1", "--no_val") == 0
    assert not leftover.exists()


def test_masks_made_elsewhere(dataset, tmp_path, capsys) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    labels = sitk.ReadImage(str(dataset / "gt_segmentations" / "case_00.nii.gz"))
    sitk.WriteImage(labels, str(masks / "un_01.nii.gz"))
    sitk.WriteImage(labels, str(masks / "case_05.nii.gz"))  # of a validation case: left out
    words = ("-tr", "SelfTrainingTrainer", "-num_iterations", "2", "--no_val", "-pseudo_labels")
    assert train(dataset, *words, str(masks)) == 0
    tag = automatic_tag(RunSettings(num_iterations=2, pseudo_labels=str(masks)))
    folder = results(dataset, "SelfTrainingTrainer", tag)
    assert list(json.loads((folder / "pseudo_labels" / "cases.json").read_text())) == ["un_01"]
    record = RunRecord.read(folder)
    assert record.settings.pseudo_labels == str(masks)
    assert record.sessions[0].command.endswith(f"-pseudo_labels {masks} --no_val")
    assert train(dataset, "-tr", "SelfTrainingTrainer", "--c", "--no_val") == 0
    capsys.readouterr()
    assert train(dataset, "-pseudo_labels", str(masks)) == 2
    assert "train with -tr SelfTrainingTrainer" in capsys.readouterr().err
    assert train(dataset, *words, str(tmp_path / "nowhere")) == 2
    sitk.WriteImage(labels[:10], str(masks / "un_02.nii.gz"))
    assert train(dataset, *words, str(masks), "-tag", "wrong") == 3
    assert "un_02.nii.gz has the shape (10, 24, 20), its scan has (22, 24, 20)" in capsys.readouterr().err
    assert not results(dataset, "SelfTrainingTrainer", "wrong").exists()


def plan_for_setting(dataset: Path, setting: str = "umda:A:B") -> None:
    """Give the hand-made data set domains, and plans and a splits file for a setting."""
    content = json.loads((dataset / "dataset.json").read_text())
    (split, *_) = json.loads((dataset / "splits_final.json").read_text())
    content["cases"] = {case: {"domain": "A"} for case in split["train"] + split["val"]}
    content["cases"] |= {case: {"domain": "B"} for case in split["unlabelled"]}
    (dataset / "dataset.json").write_text(json.dumps(content))
    (dataset / "splits_final@umda-A-B.json").write_text(json.dumps([{**split, "setting": setting}]))
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    plans |= {
        "plans_name": "nnUNetPlans@umda-A-B",
        "nnssl_semi": {"setting": setting, "labelled_cases": split["train"]},
    }
    (dataset / "nnUNetPlans@umda-A-B.json").write_text(json.dumps(plans))


def test_a_setting_has_runs_of_its_own(dataset, capsys) -> None:
    plan_for_setting(dataset)
    short = ("-tr", "SupervisedTrainer", "-num_iterations", "1", "-setting", "umda:A->B")
    assert train(dataset, *short) == 0
    folder = results(dataset).parents[1] / "SupervisedTrainer__nnUNetPlans@umda-A-B__3d_fullres@iterations1" / "fold_0"
    record = RunRecord.read(folder)
    assert record is not None
    assert record.settings.setting == "umda:A:B"
    assert "-tr SupervisedTrainer -setting umda:A:B -num_iterations 1" in record.sessions[0].command
    assert not (folder.parent / "postprocessing.json").exists()
    capsys.readouterr()
    assert train(dataset, *short) == 2
    assert "exists already" in capsys.readouterr().err
    assert train(dataset, *short[:4], "-setting", "umda:A,B", "--val") == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-setting", "mdg:B"], 3, ("not planned for mdg:B", "umda-A-B", "-setting mdg:B")),
        (["-setting", "umda:A:B", "-labelled", "1"], 3, ("there are no plans", "-setting umda:A:B -labelled 1")),
        (["-setting", "umda:A-"], 2, ("redirection",)),
        (["-setting", "uda:A:B"], 2, ("unknown setting",)),
        (["-setting", "umda:A:B", "-protocol", "acdc-7"], 2, ("exclude each other",)),
        (["-p", "nnUNetPlans@umda-A-B"], 2, ("without the tags",)),
        (["-protocol", "mnms-to-a-2"], 3, ("not planned for mnms_to_a-5", "-protocol mnms_to_a-5")),
    ],
)
def test_wrong_settings(dataset, capsys, options, code, words) -> None:
    plan_for_setting(dataset)
    assert train(dataset, "-num_iterations", "1", *options) == code
    message = capsys.readouterr().err
    assert all(word in message for word in words)
    assert not (dataset.parents[1] / "nnUNet_results").exists() or not list(
        (dataset.parents[1] / "nnUNet_results").rglob("*.pth")
    )


def test_a_setting_has_one_fold(dataset, capsys) -> None:
    plan_for_setting(dataset)
    assert main([dataset.name, "3d_fullres", "1", "-device", "cpu", "-setting", "umda:A:B"]) == 2
    assert "one fold" in capsys.readouterr().err
