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
    return tmp_path


def test_a_table_with_the_command_of_each_run(results, capsys) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    header, first, command, second, _ = lines
    for column, text in (("state", "done"), ("tag", "default"), ("Dice", "0.812")):
        assert first[header.index(column) :].startswith(text)
    assert command == f"    {COMMAND}"
    assert second[header.index("state") :].startswith("stopped at 250 of 500")
    assert second.split()[-2:] == ["–", "0:08:20"]


def test_json_is_strict(results, capsys) -> None:
    assert main(["--json", "-tag", "seed1"]) == 0
    (run,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert run["tag"] == "seed1"
    assert (run["state"], run["iteration"], run["num_iterations"]) == ("stopped", 250, 500)
    assert run["validation_dice"] is None
    assert run["command"] == COMMAND


def test_no_runs_and_no_folder(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert main([]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert main(["--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
    monkeypatch.delenv("nnUNet_results")
    assert main([]) == 4
