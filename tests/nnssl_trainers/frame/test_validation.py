from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from torch import Tensor, nn

from nnssl.evaluation.postprocessing import Postprocessing, Step
from nnssl_trainers.frame.validation import draw_worst_cases, predict_validation_cases


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
    score = f"mean foreground Dice {np.mean(dice) / 2:.4f} (core "
    scored, decided, after = caplog.messages
    assert scored.startswith(f"validation of 2 cases: {score}")
    assert decided == f"post-processing: {DECIDED} (labelled anatomy, 4 cases)"
    assert after.startswith(f"after post-processing, {DECIDED}: {score}")


DECIDED = "largest component of foreground, core, rim"


class Bright(nn.Module):
    """Predict core in bright voxels, and so in many far ones."""

    def forward(self, image: Tensor) -> Tensor:
        logits = image.new_zeros(len(image), 3, *image.shape[2:])
        logits[:, 1] = image[:, 0] - 0.9
        return logits


def core_dice(folder: Path, truth: Path, clean: bool) -> float:
    """Return the mean Dice of core over the masks in a folder, with or without nnU-Net's post-processing."""
    values = []
    for file in sorted(folder.glob("*.nii.gz")):
        mask, wanted = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (file, truth / file.name))
        if clean:
            mask = remove_all_but_largest_component_from_segmentation(mask, [1, 2])
        values.append(2 * np.sum((mask == 1) & (wanted == 1)) / (np.sum(mask == 1) + np.sum(wanted == 1)))
    return float(np.mean(values))


def test_scores_with_and_without_post_processing(trainer) -> None:
    predict_validation_cases(trainer, Bright(), save_probabilities=False)
    folder = Path(trainer.output_folder) / "validation"
    truth = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    before, after = (core_dice(folder, truth, clean) for clean in (False, True))
    assert before != pytest.approx(after, abs=1e-3)
    summaries = [json.loads((folder / f"summary{part}.json").read_text()) for part in ("", "_postprocessed")]
    assert [summary["mean"]["1"]["Dice"] for summary in summaries] == pytest.approx([before, after])
    assert "postprocessing" not in summaries[0]["conventions"]
    assert summaries[1]["conventions"]["postprocessing"] == f"{DECIDED} (labelled anatomy, 4 cases)"


def test_a_decision_that_training_wrote_is_kept_and_none_changes_no_score(trainer) -> None:
    fold = Path(trainer.output_folder)
    decision = Postprocessing("labelled anatomy", 77, (Step("foreground", (1, 2)),))
    decision.write(fold)
    predict_validation_cases(trainer, Bright(), save_probabilities=False)
    assert Postprocessing.read(fold) == decision
    files = [fold / "validation" / f"summary{part}.json" for part in ("", "_postprocessed")]
    assert files[0].read_text() == files[1].read_text()


def test_the_last_fold_that_is_validated_decides_for_the_model(trainer) -> None:
    preprocessed, model = Path(trainer.preprocessed_dataset_folder_base), Path(trainer.output_folder_base)
    cases = [["case_00", "case_01", "case_02", "case_03"], ["case_04", "case_05"]]
    splits = [{"train": cases[0], "val": cases[1]}, {"train": cases[1], "val": cases[0]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    other = model / "fold_1" / "validation"
    other.mkdir(parents=True)
    for case in cases[0]:
        shutil.copy(preprocessed / "gt_segmentations" / f"{case}.nii.gz", other)
    for fold in (model / "fold_0", model / "fold_1"):
        (fold / "checkpoint_final.pth").touch()
    predict_validation_cases(trainer, Bright(), save_probabilities=False)
    assert Postprocessing.read(model) is None  # fold 1 has masks, and no scores yet
    (other / "summary.json").touch()
    predict_validation_cases(trainer, Bright(), save_probabilities=False)
    decision = Postprocessing.read(model)
    assert decision is not None
    assert (decision.evidence, decision.num_cases) == ("cross-validation", 6)


def test_masks_without_a_right_voxel_are_a_warning(trainer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="nnssl.train"):
        predict_validation_cases(trainer, Constant(0), save_probabilities=False)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "no predicted foreground voxel is right" in warning.getMessage()


def test_probabilities_are_written_on_request(trainer) -> None:
    predict_validation_cases(trainer, Constant(2), save_probabilities=True)
    file = Path(trainer.output_folder) / "validation" / "case_04.npz"
    probabilities = np.load(file)["probabilities"]
    assert probabilities.shape[0] == 3
    assert probabilities[2].min() > 0.99


def test_a_sheet_of_the_validation_cases(trainer, caplog: pytest.LogCaptureFixture) -> None:
    """Scans of nnUNet_raw are drawn with mask and label; without them, or with a broken scan, the run ends as well."""
    predict_validation_cases(trainer, Constant(1), save_probabilities=False)
    fold, base = Path(trainer.output_folder), Path(trainer.preprocessed_dataset_folder_base)
    sheet = fold / "validation.png"
    assert not sheet.exists()
    images = Path(os.environ["nnUNet_raw"]) / base.name / "imagesTr"
    images.mkdir(parents=True)
    for case in trainer.do_split()[1]:
        label = sitk.ReadImage(str(base / "gt_segmentations" / f"{case}.nii.gz"))
        sitk.WriteImage(sitk.Cast(label, sitk.sitkFloat32), str(images / f"{case}_0000.nii.gz"))
    draw_worst_cases(trainer, fold / "validation", 2)
    assert sheet.stat().st_size > 10_000
    sheet.unlink()
    (images / f"{case}_0000.nii.gz").write_bytes(b"cut off")
    draw_worst_cases(trainer, fold / "validation", 2)
    assert "warning: no sheet of the validation cases" in caplog.text
    assert not sheet.exists()
