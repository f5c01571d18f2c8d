"""Small folders of label files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK

LABELS = {"background": 0, "core": 1, "rim": 2}
SPACING = (0.8, 1.2, 3.0)  # in the file's order x, y, z


def write_labels(path: Path, array, spacing=SPACING, origin=None, direction=None) -> Path:
    """Write an array (z, y, x) or (y, x) as a label file."""
    image = SimpleITK.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing[: image.GetDimension()])
    if origin is not None:
        image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def label_array(seed: int, shape=(5, 8, 7), values=(1, 2)) -> np.ndarray:
    """Return boxes of the values at random places, uint8."""
    generator = np.random.default_rng(seed)
    array = np.zeros(shape, dtype=np.uint8)
    for value in values:
        low = [int(generator.integers(0, size - 2)) for size in shape]
        array[tuple(slice(start, start + 3) for start in low)] = value
    return array


def write_folders(root: Path, cases: int = 4, labels=LABELS, ending: str = ".nii.gz", **settings) -> tuple[Path, Path]:
    """Write references and predictions of `cases` cases and a dataset.json beside the predictions."""
    references, predictions = root / "labelsTs", root / "predictions"
    for number in range(cases):
        write_labels(references / f"case_{number}{ending}", label_array(number))
        write_labels(predictions / f"case_{number}{ending}", label_array(number + 100))
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ending, **settings}
    (predictions / "dataset.json").write_text(json.dumps(content))
    return references, predictions
