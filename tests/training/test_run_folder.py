from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.training.run_folder import ModelName, check_other_folds, has_run, is_locked, lock_fold, start_in


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checkpoint_final.pth"
    file.write_text(folder.name)
    return file


def fail_in(folder: Path, beside: Path | None = None) -> None:
    with pytest.raises(RuntimeError, match="broken"), start_in(folder, keep_on_failure=False):
        folder.mkdir(parents=True)
        (folder / "training_log.txt").write_text("log")
        (folder.parent / "plans.json").write_text("{}")
        if beside is not None:
            checkpoint(beside)
        raise RuntimeError("broken")


@pytest.mark.parametrize("tag", ["", "seed1,mix=off", "a_b%c"])
def test_names_of_models_go_round(tag: str) -> None:
    name = ModelName("DSMTTrainer", "nnUNetPlans@lab7", "3d_fullres", tag)
    assert ModelName.parse(name.folder) == name
    assert len(name.folder.split("__")) == 3  # stock nnU-Net reads three parts


def test_other_folders_are_no_models() -> None:
    assert ModelName.parse("crossval_results") is None
    assert ModelName.parse("a__b") is None


def test_an_earlier_run_goes_when_the_new_one_is_there(tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    for text in ("first", "second"):
        with start_in(fold, keep_on_failure=False):
            assert not has_run(fold)
            checkpoint(fold).write_text(text)
    assert (fold / "checkpoint_final.pth").read_text() == "second"
    assert [path.name for path in fold.parent.iterdir()] == ["fold_0"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    fold = tmp_path / "results" / "model" / "fold_0"
    assert not is_locked(fold)
    with lock_fold(fold):
        assert is_locked(fold)
        with pytest.raises(EnvironmentProblem, match="another process is training this fold"), lock_fold(fold):
            raise AssertionError
        with lock_fold(fold.with_name("fold_1")):
            checkpoint(fold)
    assert not is_locked(fold)
    with lock_fold(fold):
        assert (fold / "checkpoint_final.pth").is_file()
    assert {path.name for path in fold.parent.iterdir()} == {"fold_0"}


def test_what_fails_alone_leaves_nothing(tmp_path: Path) -> None:
    fold = tmp_path / "results" / "model" / "fold_0"
    with pytest.raises(RuntimeError, match="broken"), lock_fold(fold), start_in(fold, keep_on_failure=False):
        fold.mkdir()
        (fold.parent / "plans.json").write_text("{}")
        raise RuntimeError("broken")
    assert not list(tmp_path.iterdir())


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    fail_in(tmp_path / "results" / "Dataset" / "model" / "fold_0")
    assert not list(tmp_path.iterdir())


def test_logs_of_a_failed_run_without_checkpoints_stay_where_asked(tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    with pytest.raises(RuntimeError, match="broken"), start_in(fold, keep_on_failure=True):
        fold.mkdir(parents=True)
        (fold / "progress.jsonl").write_text("{}")
        raise RuntimeError("broken")
    assert (fold / "progress.jsonl").is_file()


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_start_puts_the_earlier_run_back(keep: bool, tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    with pytest.raises(RuntimeError, match="broken"), start_in(file.parent, keep_on_failure=keep):
        file.parent.mkdir()
        raise RuntimeError("broken")
    assert file.read_text() == "fold_0"
    assert [path.name for path in file.parent.parent.iterdir()] == ["fold_0"]


def test_a_failure_after_the_first_checkpoint_keeps_the_new_run(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    with pytest.raises(RuntimeError, match="broken"), start_in(file.parent, keep_on_failure=False):
        checkpoint(file.parent).write_text("new")
        raise RuntimeError("broken")
    assert file.read_text() == "new"
    assert [path.name for path in file.parent.parent.iterdir()] == ["fold_0"]


@pytest.mark.parametrize("new_has_checkpoint", [False, True])
def test_a_kill_between_old_and_new_run_loses_neither(new_has_checkpoint: bool, tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    checkpoint(fold.with_name(".replaced_fold_0")).write_text("old")
    fold.mkdir()
    if new_has_checkpoint:
        checkpoint(fold).write_text("new")
    with pytest.raises(RuntimeError), start_in(fold, keep_on_failure=False):
        raise RuntimeError
    assert (fold / "checkpoint_final.pth").read_text() == ("new" if new_has_checkpoint else "old")
    assert [path.name for path in fold.parent.iterdir()] == ["fold_0"]


def test_folds_of_one_model_have_one_network(tmp_path: Path) -> None:
    plans = {name: {"configurations": {"2d": {"architecture": name}}} for name in ("one", "other")}
    fold = tmp_path / "fold_0"
    check_other_folds(fold, plans["one"], "2d")
    (tmp_path / "plans.json").write_text(json.dumps(plans["one"]))
    checkpoint(fold)
    check_other_folds(fold, plans["other"], "2d")  # a fold may begin anew with another network
    checkpoint(tmp_path / "fold_1")
    check_other_folds(fold, plans["one"], "2d")
    with pytest.raises(UsageError, match="another one than that of fold_1") as caught:
        check_other_folds(fold, plans["other"], "2d")
    assert caught.value.where == str(tmp_path / "plans.json")


@pytest.mark.parametrize("beside", ["Dataset/model/fold_1", "Dataset/other/fold_0", "Dataset2/model/fold_0"])
def test_a_failed_start_leaves_the_runs_that_others_began_meanwhile(beside: str, tmp_path: Path) -> None:
    other = tmp_path / "results" / beside
    fail_in(tmp_path / "results" / "Dataset" / "model" / "fold_0", beside=other)
    assert (other / "checkpoint_final.pth").read_text() == other.name
    assert not (tmp_path / "results" / "Dataset" / "model" / "fold_0").exists()
    assert (tmp_path / "results" / "Dataset" / "model" / "plans.json").exists() == (beside == "Dataset/model/fold_1")
