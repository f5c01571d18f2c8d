from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.training.run_folder import alone_in, check_other_folds, in_place_of_previous


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checkpoint_final.pth"
    file.write_text(folder.name)
    return file


def fail_in(folder: Path, beside: Path | None = None) -> None:
    with pytest.raises(RuntimeError, match="broken"), in_place_of_previous(folder, put_back=True):
        folder.mkdir(parents=True)
        (folder / "training_log.txt").write_text("log")
        (folder.parent / "plans.json").write_text("{}")
        if beside is not None:
            checkpoint(beside)
        raise RuntimeError("broken")


def test_an_earlier_run_is_kept_and_only_the_last_one(tmp_path: Path) -> None:
    fold = tmp_path / "model" / "fold_0"
    for text in ("first", "second"):
        with in_place_of_previous(fold, put_back=True):
            checkpoint(fold).write_text(text)
    assert (fold / "checkpoint_final.pth").read_text() == "second"
    assert (fold.with_name("previous_fold_0") / "checkpoint_final.pth").read_text() == "first"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    fold = tmp_path / "results" / "model" / "fold_0"
    with alone_in(fold):
        with pytest.raises(EnvironmentProblem, match="another process is training this fold"), alone_in(fold):
            raise AssertionError
        with alone_in(fold.with_name("fold_1")):
            checkpoint(fold)
    with alone_in(fold):
        assert (fold / "checkpoint_final.pth").is_file()
    assert {path.name for path in fold.parent.iterdir()} == {"fold_0"}


def test_what_fails_alone_leaves_nothing(tmp_path: Path) -> None:
    fold = tmp_path / "results" / "model" / "fold_0"
    with pytest.raises(RuntimeError, match="broken"), alone_in(fold), in_place_of_previous(fold, put_back=True):
        fold.mkdir()
        (fold.parent / "plans.json").write_text("{}")
        raise RuntimeError("broken")
    assert not list(tmp_path.iterdir())


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    fail_in(tmp_path / "results" / "Dataset" / "model" / "fold_0")
    assert not list(tmp_path.iterdir())


def test_a_failed_start_puts_the_earlier_run_back(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    fail_in(file.parent)
    assert file.read_text() == "fold_0"
    assert not file.parent.with_name("previous_fold_0").exists()


def test_a_failed_start_puts_the_run_before_the_earlier_one_back_too(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    kept = checkpoint(file.parent.with_name("previous_fold_0"))
    fail_in(file.parent)
    assert (file.read_text(), kept.read_text()) == ("fold_0", "previous_fold_0")
    assert {path.name for path in file.parent.parent.iterdir()} >= {"fold_0", "previous_fold_0"}
    assert not list(file.parent.parent.glob("*_older"))


def test_a_failure_after_the_first_checkpoint_keeps_the_new_run(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    checkpoint(file.parent.with_name("previous_fold_0"))
    with pytest.raises(RuntimeError, match="broken"), in_place_of_previous(file.parent, put_back=True):
        checkpoint(file.parent).write_text("new")
        raise RuntimeError("broken")
    assert file.read_text() == "new"
    assert (file.parent.with_name("previous_fold_0") / file.name).read_text() == "fold_0"
    assert not list(file.parent.parent.glob("*_older"))


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
