from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from torch import Tensor, nn

from nnssl_trainers.frame.validation import predict_validation_cases


class Constant(nn.Module):
    """Predict one label in every voxel."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, image: Tensor) -> Tensor:
        logits = image.new_zeros(len(image), 3, *image.shape[2:])
        logits[:, self.label] = 10.0
        return logits


@pytest.fixture
def trainer(make_trainer):
    made = make_trainer("SupervisedTrainer", 3)
    made.initialize()
    return made


def test_masks_and_scores_of_the_validation_cases(trainer, caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(trainer.output_folder) / "validation"
    folder.mkdir(parents=True)
    (folder / "case_99.nii.gz").write_text("a mask of an earlier split")
    with caplog.at_level(logging.INFO, logger="nnssl.train"):
        predict_validation_cases(trainer, Constant(1), save_probabilities=False)
    assert sorted(file.name for file in folder.glob("case_*")) == ["case_04.nii.gz", "case_05.nii.gz"]
    dice = []
    for case in ("case_04", "case_05"):
        assert (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))) == 1).all()
        truth = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations" / f"{case}.nii.gz"
        core = np.mean(sitk.GetArrayFromImage(sitk.ReadImage(str(truth))) == 1)
        dice.append(2 * core / (core + 1))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == pytest.approx(np.mean(dice))
    assert summary["mean"]["2"]["Dice"] == 0
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"validation of 2 cases: mean foreground Dice {np.mean(dice) / 2:.4f} (core ")


def test_masks_without_a_right_voxel_are_a_warning(trainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nnssl.train"):
        predict_validation_cases(trainer, Constant(0), save_probabilities=False)
    assert "no predicted foreground voxel is right" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelname == "WARNING"


def test_probabilities_are_written_on_request(trainer) -> None:
    predict_validation_cases(trainer, Constant(2), save_probabilities=True)
    file = Path(trainer.output_folder) / "validation" / "case_04.npz"
    probabilities = np.load(file)["probabilities"]
    assert probabilities.shape[0] == 3
    assert probabilities[2].min() > 0.99
