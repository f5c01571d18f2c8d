from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnssl.evaluation.postprocessing import Postprocessing
from nnssl_trainers.frame.postprocessing import (
    decide_for_fold,
    decide_for_model,
    forget_decision_of_model,
    held_out_predictions,
    is_cross_validation,
)

SPLITS = [
    {"train": ["case_02", "case_03"], "val": ["case_00", "case_01"]},
    {"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]},
]
CORNER = (0, 0, 0)


@pytest.fixture
def trainer(make_trainer):
    return make_trainer("SupervisedTrainer", 3)


def truth_of(trainer) -> Path:
    return Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"


def add_voxel(file: Path, label: int, target: Path | None = None) -> None:
    """Write the mask of a file with one more voxel in a corner, far from the rest."""
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    assert array[CORNER] == 0
    array[CORNER] = label
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(target or file))


@pytest.fixture
def folds(trainer):
    """Return the model's folder; the two folds predict their held-out cases right, but for a voxel of core."""
    preprocessed, model = Path(trainer.preprocessed_dataset_folder_base), Path(trainer.output_folder_base)
    (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    for number, split in enumerate(SPLITS):
        validation = model / f"fold_{number}" / "validation"
        validation.mkdir(parents=True, exist_ok=True)
        (validation.parent / "checkpoint_final.pth").touch()
        (validation / "summary.json").touch()
        for case in split["val"]:
            add_voxel(truth_of(trainer) / f"{case}.nii.gz", 1, validation / f"{case}.nii.gz")
    return model


def test_the_labelled_cases_of_the_run_decide_and_validation_cases_do_not(trainer, caplog) -> None:
    add_voxel(truth_of(trainer) / "case_05.nii.gz", 1)  # held out
    with caplog.at_level(logging.INFO, logger="nnssl.train"):
        decision = decide_for_fold(trainer)
    assert decision.applied == ((1, 2), (1,), (2,))
    assert decision.num_cases == 4
    assert Postprocessing.read(Path(trainer.output_folder)) == decision
    assert caplog.messages == [
        "post-processing: largest component of foreground, core, rim (labelled anatomy, 4 cases)"
    ]
    add_voxel(truth_of(trainer) / "case_02.nii.gz", 1)
    assert decide_for_fold(trainer).applied == ((2,),)


def test_only_labels_inside_the_budget_decide(make_trainer) -> None:
    trainer = make_trainer("SupervisedTrainer", 3, labelled="2")
    hidden = set(trainer.fold_cases().unlabelled) & {f"case_{number:02d}" for number in range(4)}
    assert len(hidden) == 2
    for case in hidden:
        (truth_of(trainer) / f"{case}.nii.gz").unlink()
    assert decide_for_fold(trainer).num_cases == 2


def test_labels_that_cannot_be_read_end_no_run(trainer, caplog) -> None:
    (truth_of(trainer) / "case_01.nii.gz").write_bytes(b"")
    assert decide_for_fold(trainer) is None
    assert "post-processing is not decided" in caplog.messages[-1]
    assert "case_01.nii.gz" in caplog.messages[-1]
    assert not (Path(trainer.output_folder) / "postprocessing.json").exists()


@pytest.mark.parametrize("name", ["SupervisedTrainer", "MeanTeacherTrainer"])
def test_the_end_of_training_decides_anew(name, make_trainer) -> None:
    trainer = make_trainer(name, 3)
    trainer.initialize()
    model = Path(trainer.output_folder_base)
    Postprocessing("cross-validation", 9).write(model)
    Postprocessing("labelled anatomy", 9).write(Path(trainer.output_folder))
    trainer.on_train_end()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    assert Postprocessing.read(Path(trainer.output_folder)).num_cases == 4
    assert Postprocessing.read(model) is None


def test_a_run_on_all_cases_leaves_the_decision_of_the_folds(trainer) -> None:
    Postprocessing("cross-validation", 9).write(Path(trainer.output_folder_base))
    trainer.fold = "all"
    forget_decision_of_model(trainer)
    assert Postprocessing.read(Path(trainer.output_folder_base)).num_cases == 9
    assert decide_for_model(trainer) is None


def test_the_folds_decide_together(folds, trainer) -> None:
    decision = decide_for_model(trainer)
    assert (decision.evidence, decision.num_cases) == ("cross-validation", 4)
    assert decision.applied == ((1, 2),)
    assert Postprocessing.read(folds) == decision
    for split in SPLITS:  # a voxel that is right must stay
        for case in split["val"]:
            add_voxel(truth_of(trainer) / f"{case}.nii.gz", 1)
    assert decide_for_model(trainer).applied == ()
    assert Postprocessing.read(folds).applied == ()


def test_validation_cases_are_the_test_bed_of_a_label_budget(folds, trainer) -> None:
    trainer.settings = dataclasses.replace(trainer.settings, labelled="1")
    assert decide_for_model(trainer) is None
    assert Postprocessing.read(folds) is None


@pytest.mark.parametrize(
    "missing", ["checkpoint_final.pth", "validation/summary.json", "validation/case_02.nii.gz", "validation"]
)
def test_the_folds_decide_when_all_are_validated(missing, folds, trainer) -> None:
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    assert sorted(held_out_predictions(folds, preprocessed, ".nii.gz")) == [f"case_{k:02d}" for k in range(4)]
    path = folds / "fold_1" / missing
    path.rename(path.with_name("elsewhere"))
    assert held_out_predictions(folds, preprocessed, ".nii.gz") is None
    assert decide_for_model(trainer) is None


def test_a_mask_that_cannot_be_read_is_a_warning(folds, trainer, caplog) -> None:
    (folds / "fold_1" / "validation" / "case_02.nii.gz").write_bytes(b"")
    assert decide_for_model(trainer) is None
    assert "post-processing is not decided" in caplog.messages[-1]
    assert Postprocessing.read(folds) is None


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (SPLITS, True),
        (SPLITS[:1], False),  # two cases are held out by no fold
        ([{"train": ["a"], "val": ["b"]}], False),  # a split into training and test cases
        ([{"train": ["a"], "val": ["a"]}], False),  # nothing is held out
        ([{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "b"], "val": ["c"]}], False),
        ([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}], False),
        ([{"train": [b, c], "val": [a]} for a, b, c in ("abc", "bca", "cab")], True),
    ],
)
def test_what_is_a_cross_validation(splits, expected) -> None:
    assert is_cross_validation(splits) is expected
