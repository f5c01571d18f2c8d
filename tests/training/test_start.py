from __future__ import annotations

import copy
from pathlib import Path

import pytest

from nnssl.errors import EnvironmentProblem, UsageError
from nnssl.training.start import check_start, find_pseudo_labels, find_start, name_of_start
from tests.conftest import tiny_plans

PLANS = {"plans_name": "nnUNetPlans@lab3"}
LABELS = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MRI"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_A" / "SupervisedTrainer__nnUNetPlans@lab3__2d@seed1" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"x")
    return folder


def test_every_way_to_name_a_run(run: Path) -> None:
    results = run.parents[1]
    for text in (
        run / "checkpoint_final.pth",
        run,
        run.parent,
        run.parent.name,
        f"{run.parent.name}/fold_0",
        "SupervisedTrainer@seed1",
    ):
        assert find_start(text, results, 0, PLANS, "2d") == run / "checkpoint_final.pth"


def test_a_run_that_does_not_exist_or_is_not_finished(run: Path) -> None:
    results = run.parents[1]
    with pytest.raises(UsageError, match="no such run") as error:
        find_start("SupervisedTrainer@seed2", results, 0, PLANS, "2d")
    assert error.value.run == "nnssl_runs lists all runs"
    with pytest.raises(EnvironmentProblem, match="no such fold"):
        find_start("SupervisedTrainer@seed1", results, 3, PLANS, "2d")
    (run / "checkpoint_final.pth").unlink()
    with pytest.raises(EnvironmentProblem, match="not finished"):
        find_start("SupervisedTrainer@seed1", results, 0, PLANS, "2d")


def test_the_settings_keep_a_path_below_the_results(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoint_final.pth"
    assert name_of_start(file, tmp_path) == str(file.relative_to(tmp_path))
    assert name_of_start(file, tmp_path / "other") == str(file)


def checkpoint(**changes: object) -> dict[str, object]:
    plans = tiny_plans(2, [16, 16])
    plans["configurations"]["2d"].update(changes)
    return {
        "network_weights": {},
        "init_args": {"plans": plans, "configuration": "2d", "dataset_json": copy.deepcopy(LABELS)},
    }


def test_the_same_images_and_labels_pass() -> None:
    check_start(checkpoint(patch_size=[32, 32]), tiny_plans(2, [16, 16]), "2d", LABELS, "f")


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"spacing": [3.0, 1.0]}, "spacing"), ({"normalization_schemes": ["NoNormalization"]}, "normalization")],
)
def test_other_images_are_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(EnvironmentProblem, match="other images or labels") as error:
        check_start(checkpoint(**changes), tiny_plans(2, [16, 16]), "2d", LABELS, "f")
    assert word in error.value.why


@pytest.mark.parametrize(("key", "value"), [("labels", {"background": 0, "b": 1}), ("channel_names", {"0": "CT"})])
def test_other_labels_or_channels_are_refused(key: str, value: dict[str, object]) -> None:
    with pytest.raises(EnvironmentProblem, match="other images or labels"):
        check_start(checkpoint(), tiny_plans(2, [16, 16]), "2d", {**LABELS, key: value}, "f")


def test_a_file_that_is_no_checkpoint_of_nnunet() -> None:
    with pytest.raises(EnvironmentProblem, match="no checkpoint of nnU-Net"):
        check_start({"model": {}}, tiny_plans(2, [16, 16]), "2d", LABELS, "f")


def test_pseudo_labels_are_a_folder_for_a_method_that_takes_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    assert find_pseudo_labels("masks", "SelfTrainingTrainer", True) == str(tmp_path / "masks")
    with pytest.raises(UsageError, match="no such folder of masks"):
        find_pseudo_labels("other", "SelfTrainingTrainer", True)
    with pytest.raises(UsageError, match="MeanTeacherTrainer makes its pseudo-labels itself"):
        find_pseudo_labels("masks", "MeanTeacherTrainer", False)
