"""A tiny raw data set: six labelled and three unlabelled scans of three spacings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

DATASET = "Dataset906_Raw"
SPACINGS = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.2), (1.1, 1.0, 1.0))  # x, y, z


def write_scan(images: Path, name: str, seed: int, labels: Path | None = None) -> None:
    rng = np.random.default_rng(seed)
    shape = (18 + seed % 3, 22, 20)
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    distance = np.sqrt(sum((g - n / 2 - rng.uniform(-2, 2)) ** 2 for g, n in zip(grid, shape, strict=True)))
    label = np.where(distance < 4, 1, np.where(distance < 7, 2, 0)).astype(np.uint8)
    image = (np.array([5.0, 90.0, 50.0])[label] + rng.normal(0, 4, shape)).astype(np.float32)
    spacing = SPACINGS[seed % len(SPACINGS)]
    for folder, array, file in ((images, image, f"{name}_0000.nii.gz"), (labels, label, f"{name}.nii.gz")):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing)
            sitk.WriteImage(volume, str(folder / file))


def make_raw(root: Path, labelled: int = 6, unlabelled: int = 3) -> Path:
    folder = root / "raw" / DATASET
    for number in range(labelled):
        write_scan(folder / "imagesTr", f"case_{number}", number, folder / "labelsTr")
    for number in range(unlabelled):
        write_scan(folder / "imagesUn", f"un_{number}", 100 + number)
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "core": 1, "rim": 2},
            "numTraining": labelled,
            "file_ending": ".nii.gz",
        },
    )
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def fresh_copy(raw: Path, root: Path, monkeypatch: Any) -> tuple[Path, Path]:
    """Copy a raw data set below `root`, point nnU-Net there, and return its raw and its preprocessed folder."""
    copy = root / "raw" / raw.name
    shutil.copytree(raw, copy)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
    return copy, root / "preprocessed" / raw.name
