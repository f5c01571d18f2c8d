"""A tiny raw data set in nnU-Net's layout, for the tests that plan, train and predict for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.conftest import LABELS, tiny_case

NAME = "Dataset906_TinyRaw"


def write_scan(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def write_raw(root: Path, labelled: int = 6, unlabelled: int = 2, test: int = 1, cases: Sequence[str] = ()) -> Path:
    """Write the data set below `root` and return its folder; the same arguments give the same voxels."""
    folder, rng = root / NAME, np.random.default_rng(11)
    names = list(cases) or [f"case_{i:02d}" for i in range(labelled)]
    for name in names:
        image, labels = tiny_case(rng)
        write_scan(folder / "imagesTr" / f"{name}_0000.nii.gz", image[0])
        write_scan(folder / "labelsTr" / f"{name}.nii.gz", labels[0])
    for part, count in (("Un", unlabelled), ("Ts", test)):
        for i in range(count):
            image, labels = tiny_case(rng)
            write_scan(folder / f"images{part}" / f"{part.lower()}_{i:02d}_0000.nii.gz", image[0])
            if part == "Ts":
                write_scan(folder / "labelsTs" / f"ts_{i:02d}.nii.gz", labels[0])
    content = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": len(names), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
