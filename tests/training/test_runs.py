from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.errors import UsageError
from nnssl.training.record import RunRecord, Session
from nnssl.training.run_folder import ModelName, lock_fold
from nnssl.training.runs import fits_dataset, only_run, runs
from nnssl.training.settings import RunSettings


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return tmp_path


def add_run(results: Path, tag: str = "", state: str = "done", fold: str = "0", **more) -> Path:
    name = ModelName(more.pop("trainer", "SupervisedTrainer"), "nnUNetPlans", "2d", tag)
    folder = results / more.pop("dataset", "Dataset001_A") / name.folder / f"fold_{fold}"
    folder.mkdir(parents=True)
    (folder / ("checkpoint_final.pth" if state == "done" else "checkpoint_latest.pth")).touch()
    settings = RunSettings(num_iterations=100, tag=tag)
    RunRecord("Dataset001_A", name.trainer, "nnUNetPlans", "2d", fold, settings, state=state,
              iteration=40, sessions=(Session("nnssl_train 1 2d 0", "t"),)).write(folder)  # fmt: skip
    return folder


def test_runs_with_and_without_a_record(results: Path) -> None:
    add_run(results, "seed1")
    old = results / "Dataset001_A" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_3"
    old.mkdir(parents=True)
    (old / "checkpoint_final.pth").touch()
    (results / "Dataset001_A" / "SupervisedTrainer__nnUNetPlans__2d" / "fold_0").mkdir(parents=True)  # empty
    (results / "Dataset001_A" / "crossval").mkdir()
    found = runs()
    assert [(run.trainer, run.tag, run.fold, run.state) for run in found] == [
        ("SupervisedTrainer", "seed1", "0", "done"),
        ("nnUNetTrainer", "", "3", "done"),
    ]
    assert (found[0].command, found[1].command) == ("nnssl_train 1 2d 0", "")
    assert found[1].iteration is None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 4),
        ({"dataset": 1}, 3),
        ({"dataset": "Dataset002_B"}, 1),
        ({"trainer": "CCETrainer"}, 1),
        ({"tag": "seed1"}, 1),
        ({"tag": "default"}, 3),
        ({"fold": 1}, 1),
        ({"fold": "all"}, 0),
    ],
)
def test_names_narrow_the_list_down(query, count: int, results: Path) -> None:
    add_run(results)
    add_run(results, "seed1")
    add_run(results, dataset="Dataset002_B", trainer="CCETrainer")
    add_run(results, fold="1")
    assert len(runs(**query)) == count


@pytest.mark.parametrize(
    ("state", "words"), [("stopped", "stopped at 40 of 100"), ("failed", "failed at 40 of 100"), ("done", "done")]
)
def test_states_in_words(state: str, words: str, results: Path) -> None:
    add_run(results, state=state)
    assert runs()[0].progress == words


def test_a_killed_run_is_stopped_and_a_locked_one_runs(results: Path) -> None:
    folder = add_run(results, state="running")
    assert runs()[0].progress == "stopped at 40 of 100"
    with lock_fold(folder):
        assert runs()[0].progress == "running"


def test_damaged_files_do_not_hide_a_run(results: Path) -> None:
    folder = add_run(results)
    for name in ("run.json", "progress.jsonl"):
        (folder / name).write_text("{")
    assert runs()[0].state == "done"


def test_a_choice_among_several_lists_the_options_of_each(results: Path) -> None:
    add_run(results)
    add_run(results, "seed1")
    with pytest.raises(UsageError, match="2 runs fit") as caught:
        only_run(runs())
    assert "-tag default   (done)" in caught.value.why
    assert "-tag seed1   (done)" in caught.value.why
    with pytest.raises(UsageError, match="no run fits"):
        only_run([])
    assert only_run(runs(tag="seed1")).tag == "seed1"


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [(None, True), (27, True), ("027", True), ("Dataset027_ACDC", True), (2, False), ("ACDC", False)],
)
def test_ids_and_names_of_data_sets(wanted, fits: bool) -> None:
    assert fits_dataset("Dataset027_ACDC", wanted) == fits


def test_the_list_needs_neither_torch_nor_nnunet(results: Path) -> None:
    add_run(results)
    script = """
import sys
from nnssl.cli.runs import main
code = main(["--json"])
sys.exit(code or bool({"torch", "nnunetv2"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["state"] == "done"
