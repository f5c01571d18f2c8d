"""Two folders of evaluated predictions with their scans: balls that a baseline misses by more than a method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnssl.sweep.study import StudyRun

LABELS = {"background": 0, "core": 1, "<script>alert(1)</script>": 2}
DATASET = "Dataset001_A"
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


def make_sweep(root: Path, cases: int = 6) -> Path:
    """Write a study of two trainers, two budgets and two seeds whose runs are all done, and return its folder.

    nnU-Net's variables must point to `root/raw`, `root/pre` and `root/res`. Masks are better with more labels, and the
    logs of FixMatch have shares of pseudo-labels. The first case and the second label have names with HTML.
    """
    from nnssl.sweep.api import keep_study
    from nnssl.sweep.study import Study as Asked
    from nnssl.sweep.study import study_runs

    asked = Asked(DATASET, ("2d",), ("SupervisedTrainer", "FixMatchTrainer"), labelled=("2", "8"), seeds=(0, 1),
                  num_iterations=100)  # fmt: skip
    rng = np.random.default_rng(3)
    raw = root / "raw" / DATASET
    names = [HOSTILE, *(f"case_{number:02d}" for number in range(1, cases))]
    for name in names:
        write(ball() * 60.0 + rng.normal(0, 5, SHAPE), raw / "imagesTr" / f"{name}_0000.nii.gz")
        write(ball(), raw / "labelsTr" / f"{name}.nii.gz")
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    (root / "pre" / DATASET).mkdir(parents=True)
    for run in study_runs(asked):
        _write_run(run, raw, names)
    keep_study(asked, root / "study")
    return root / "study"


def _write_run(run: StudyRun, raw: Path, names: list[str]) -> None:
    """Write the record, the log, the masks and the scores of one run."""
    from nnssl.evaluation.api import evaluate
    from nnssl.sweep.places import Places
    from nnssl.training.record import DataHashes, RunRecord, Session

    helps = run.trainer == "FixMatchTrainer"
    place = Places.of(DATASET).folder(run)
    place.mkdir(parents=True)
    RunRecord(DATASET, run.trainer, "p", "2d", run.fold, run.settings, state="done", iteration=100, unlabelled_from=0,
              data=DataHashes(labelled=str(run.budget), validation="v", splits="s"),
              sessions=(Session(run.command, "t"),)).write(place)  # fmt: skip
    shares = {"pseudo_share_1": 0.3, "pseudo_share_2": 0.7} if helps else {}
    rows = [{"iteration": k, "loss": 1 / k, "loss_supervised": 1 / k, "pseudo_dice": 0.5, **shares} for k in (50, 100)]
    (place / "progress.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    budget = run.budget
    shift = 5 - 2 * helps - (budget is not None and budget.value == 8)
    for number, name in enumerate(names):
        write(ball(shift + (number + run.settings.seed) % 2), place / "validation" / f"{name}.nii.gz")
    (place / "validation" / "dataset.json").write_text((raw / "dataset.json").read_text())
    evaluate(raw / "labelsTr", place / "validation", num_processes=1)


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
