from __future__ import annotations

import json

import pytest

from nnssl.cli.runs import main
from nnssl.training.record import RunRecord, Session
from nnssl.training.run_folder import ModelName
from nnssl.training.settings import RunSettings

COMMAND = "nnssl_train Dataset001_A 2d 0 -tr CCETrainer -seed 1"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for tag, state in (("", "done"), ("seed1", "stopped")):
        folder = tmp_path / "Dataset001_A" / ModelName("CCETrainer", "nnUNetPlans@lab7", "2d", tag).folder / "fold_0"
        (folder / "validation").mkdir(parents=True)
        (folder / f"checkpoint_{'final' if state == 'done' else 'latest'}.pth").touch()
        settings = RunSettings(num_iterations=500, tag=tag)
        session = Session(COMMAND, "t")
        RunRecord("Dataset001_A", "CCETrainer", "nnUNetPlans@lab7", "2d", "0", settings, state=state,
                  iteration=250, sessions=(session,)).write(folder)  # fmt: skip
        row = {"iteration": 250, "seconds_per_iteration": 2.0}
        (folder / "progress.jsonl").write_text(json.dumps(row) + "\n")
        if state == "done":
            summary = {"foreground_mean": {"Dice": 0.8125}, "mean": {}}
            (folder / "validation" / "summary.json").write_text(json.dumps(summary))
            summary = {"foreground_mean": {"Dice": 0.875}, "mean": {}}
            (folder / "validation" / "summary_postprocessed.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_table_with_the_command_of_each_run(results, capsys) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    header, plan, first, command, second, _ = lines
    assert plan == "Dataset001_A  nnUNetPlans@lab7  2d"
    assert max(map(len, lines)) <= 100
    for column, text in (("state", "done"), ("tag", "default"), ("Dice", "0.812"), ("post", "0.875")):
        assert first[header.index(column) :].startswith(text)
    assert command.strip() == COMMAND
    assert len(command) > len(command.lstrip()) > 0
    assert second[header.index("state") :].startswith("stopped at 250 of 500")
    assert second.split()[-4:] == ["–", "–", "0:08:20", "seed1"]


def test_a_row_fits_a_hundred_columns_and_a_plan_is_named_once(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    for trainer in ("SupervisedTrainer", "MeanTeacherTrainer"):
        for plans in ("nnUNetPlans", "nnUNetPlans@lab7"):
            name = ModelName(trainer, plans, "3d_fullres", "seed1,iterations2500")
            folder = tmp_path / "Dataset027_ACDC" / name.folder / "fold_0"
            folder.mkdir(parents=True)
            settings = RunSettings(num_iterations=250_000, tag=name.tag)
            RunRecord("Dataset027_ACDC", trainer, plans, "3d_fullres", "0", settings, state="stopped",
                      iteration=249_750).write(folder)  # fmt: skip
            row = {"iteration": 249_750, "seconds_per_iteration": 2.0}
            (folder / "progress.jsonl").write_text(json.dumps(row) + "\n")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "Dataset027_ACDC  nnUNetPlans  3d_fullres",
        "Dataset027_ACDC  nnUNetPlans@lab7  3d_fullres",
    ]
    assert sum("stopped at 249750 of 250000" in line for line in lines) == 4
    assert max(map(len, lines)) <= 100


def test_json_is_strict(results, capsys) -> None:
    assert main(["--json", "-tag", "seed1"]) == 0
    (run,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert run["tag"] == "seed1"
    assert (run["state"], run["iteration"], run["num_iterations"]) == ("stopped", 250, 500)
    assert run["validation_dice"] is run["postprocessed_dice"] is None
    assert run["command"] == COMMAND


def test_no_runs_and_no_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert main([]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert main(["--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    monkeypatch.delenv("nnUNet_results")
    assert main([]) == 4
