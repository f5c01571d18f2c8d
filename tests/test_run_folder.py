from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.run_folder import in_place_of_previous


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


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    fail_in(tmp_path / "results" / "Dataset" / "model" / "fold_0")
    assert not list(tmp_path.iterdir())


def test_a_failed_start_puts_the_earlier_run_back(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "model" / "fold_0")
    fail_in(file.parent)
    assert file.read_text() == "fold_0"
    assert not file.parent.with_name("previous_fold_0").exists()


@pytest.mark.parametrize("beside", ["Dataset/model/fold_1", "Dataset/other/fold_0", "Dataset2/model/fold_0"])
def test_a_failed_start_leaves_the_runs_that_others_began_meanwhile(beside: str, tmp_path: Path) -> None:
    other = tmp_path / "results" / beside
    fail_in(tmp_path / "results" / "Dataset" / "model" / "fold_0", beside=other)
    assert (other / "checkpoint_final.pth").read_text() == other.name
    assert not (tmp_path / "results" / "Dataset" / "model" / "fold_0").exists()
    assert (tmp_path / "results" / "Dataset" / "model" / "plans.json").exists() == (beside == "Dataset/model/fold_1")
