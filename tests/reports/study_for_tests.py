"""Two folders of evaluated predictions with their scans: balls that a baseline misses by more than a method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELS = {"background": 0, "core": 1, "<script>alert(1)</script>": 2}
HOSTILE = "case<img src=x onerror=alert(2)>_$x$"
SHAPE = (12, 40, 44)


@dataclass(frozen=True)
class Study:
    """The folders of a study."""

    root: Path
    baseline: Path
    method: Path
    images: Path
    labels: Path


def ball(shift: int = 0, radius: float = 8.0) -> np.ndarray:
    """Return a label map of SHAPE: a core (1) inside a rim (2), moved along the last axis."""
    grid = np.meshgrid(*[np.arange(size, dtype=float) for size in SHAPE], indexing="ij")
    centre = [6.0, 20.0, 20.0 + shift]
    distance = np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, (3.0, 1.0, 1.0), strict=True)))
    return np.where(distance < radius / 2, 1, np.where(distance < radius, 2, 0)).astype(np.uint8)


def write(array: np.ndarray, file: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> Path:
    """Write an array (D, H, W) with a spacing in the order of SimpleITK."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(file))
    return file


def make_study(root: Path, cases: int = 6, hostile: bool = True) -> Study:
    """Write scans, references, the masks of two methods, and their summaries."""
    from nnssl.evaluation.api import evaluate

    study = Study(root, root / "SupervisedTrainer", root / "FixMatchTrainer", root / "imagesTs", root / "labelsTs")
    rng = np.random.default_rng(3)
    names = [f"case_{number:02d}" for number in range(cases - hostile)] + ([HOSTILE] if hostile else [])
    for number, name in enumerate(names):
        truth = ball()
        write(truth * 60.0 + rng.normal(0, 5, SHAPE), study.images / f"{name}_0000.nii.gz")
        write(truth, study.labels / f"{name}.nii.gz")
        write(ball(4 + number % 3), study.baseline / f"{name}.nii.gz")
        write(ball(1 + number % 2), study.method / f"{name}.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
    for folder in (study.baseline, study.method):
        (folder / "dataset.json").write_text(json.dumps(content))
        evaluate(study.labels, folder, num_processes=1)
    return study
