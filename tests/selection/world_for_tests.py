"""Trained models whose validation masks and probabilities are planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK

from tests.conftest import DATASET
from tests.inference.model_for_tests import write_model

SHAPE = (6, 12, 12)


def reference() -> np.ndarray:
    """Return a mask (z, y, x) of two blocks: label 1 and label 2."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 1:5, 1:9] = 1
    mask[1:5, 5:9, 1:9] = 2
    return mask


def without_right(mask: np.ndarray) -> np.ndarray:
    """Return the mask without its right columns."""
    return np.where(np.arange(SHAPE[2]) >= 7, 0, mask).astype(np.uint8)


def without_left(mask: np.ndarray) -> np.ndarray:
    """Return the mask without its left columns."""
    return np.where(np.arange(SHAPE[2]) < 3, 0, mask).astype(np.uint8)


def with_island(mask: np.ndarray) -> np.ndarray:
    """Return the mask with a spurious second component of label 1."""
    changed = mask.copy()
    changed[5, 11, 11] = 1
    return changed


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean Dice of labels 1 and 2."""
    return float(
        np.mean([2 * ((prediction == v) & (truth == v)).sum() / ((prediction == v).sum() + (truth == v).sum())
                 for v in (1, 2)])
    )  # fmt: skip


def save(mask: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(mask), str(file))


def write_references(preprocessed: Path, cases=("a", "b")) -> None:
    for case in cases:
        save(reference(), preprocessed / DATASET / "gt_segmentations" / f"{case}.nii.gz")


def write_validated(results: Path, trainer: str, mask: np.ndarray, *, folds=None, npz=True, **options) -> Path:
    """Write a model whose fold's validation cases have this mask; in the npz, missing voxels are nearly undecided."""
    folds = {0: ("a", "b")} if folds is None else folds
    model = write_model(results, trainer=trainer, folds=tuple(folds), **options)
    sure = np.where(mask > 0, 0.9, 0.55)  # of the label where the mask has one, else of the background
    probs = np.stack([np.where(mask == value, sure, 0.0) for value in range(3)])
    rest = 1 - probs.sum(0)
    second = np.where(mask > 0, 0, reference())
    for value in range(3):
        probs[value] += np.where(second == value, rest, 0.0)
    for fold, cases in folds.items():
        folder = model / f"fold_{fold}" / "validation"
        for case in cases:
            save(mask, folder / f"{case}.nii.gz")
            if npz:
                np.savez_compressed(folder / f"{case}.npz", probabilities=probs.astype(np.float16))
        (folder / "summary.json").write_text(json.dumps({"metric_per_case": [], "foreground_mean": {"Dice": 0.5}}))
    return model
